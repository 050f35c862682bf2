"""Writers with a fault each, put in place in a child. The harness must catch every one of them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llgbm_pack.packing import build as build_set
from llgbm_pack.packing import commit
from llgbm_pack.packing import shard as worker
from llgbm_shards import shard_writer, storage


def _new_file_with(body: Callable[[Path], Any]) -> None:
    """Replace ``new_file`` wherever it is used."""
    storage.new_file = shard_writer.new_file = contextlib.contextmanager(body)


def _no_temporary_name() -> None:
    def new_file(path: Path) -> Iterator[int]:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        yield fd
        os.fsync(fd)
        os.close(fd)
        storage.fsync_directory(path.parent)

    _new_file_with(new_file)


def _temporary(path: Path) -> tuple[Path, int]:
    temporary = path.parent / f"{storage.TEMPORARY}{path.name}-{os.getpid()}"
    return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _no_fsync() -> None:
    def new_file(path: Path) -> Iterator[int]:
        temporary, fd = _temporary(path)
        yield fd
        os.close(fd)
        temporary.rename(path)
        storage.fsync_directory(path.parent)

    _new_file_with(new_file)


def _fsync_after_rename() -> None:
    def new_file(path: Path) -> Iterator[int]:
        temporary, fd = _temporary(path)
        yield fd
        temporary.rename(path)
        os.fsync(fd)
        os.close(fd)
        storage.fsync_directory(path.parent)

    _new_file_with(new_file)


def _no_fsync_of_the_directory() -> None:
    def new_file(path: Path) -> Iterator[int]:
        temporary, fd = _temporary(path)
        yield fd
        os.fsync(fd)
        os.close(fd)
        temporary.rename(path)

    _new_file_with(new_file)


def _fsync_again_after_a_failure() -> None:
    def new_file(path: Path) -> Iterator[int]:
        temporary, fd = _temporary(path)
        yield fd
        try:
            os.fsync(fd)
        except OSError:
            os.fsync(fd)
        os.close(fd)
        temporary.rename(path)
        storage.fsync_directory(path.parent)

    _new_file_with(new_file)


def _left_behind_after_a_failure() -> None:
    """Neither the writer nor the builder removes what it could not finish."""

    def new_file(path: Path) -> Iterator[int]:
        temporary, fd = _temporary(path)
        yield fd
        os.fsync(fd)
        os.close(fd)
        temporary.rename(path)
        storage.fsync_directory(path.parent)

    _new_file_with(new_file)
    build_set.remove_temporary = lambda directory: 0


def _commit_record_first() -> None:
    write, later = commit.write_file, []

    def write_file(path: Path, data: bytes) -> None:
        if path.name != commit.RECORD_NAME:
            later.append((path, data))
            return
        write(path, data)
        for entry in later:
            write(*entry)

    commit.write_file = write_file


def _shard_record_first() -> None:
    """A shard's record is there before the shard itself."""
    write_shard, save = worker.write_shard, worker.ShardRecord.save
    unnamed: dict[str, Path] = {}

    def write(path: Path, *args: Any, **options: Any) -> Any:
        unnamed[path.name] = path.parent / f"{storage.TEMPORARY}{path.name}-late"
        shard = write_shard(unnamed[path.name], *args, **options)
        shard.name = path.name
        for row in shard.rows:
            row["shard"] = path.name
        return shard

    def save_first(record: Any, out: Path) -> None:
        save(record, out)
        unnamed[record.name].rename(out / record.name)
        storage.fsync_directory(out)

    worker.write_shard, worker.ShardRecord.save = write, save_first


def _stops_at_its_first_shard() -> None:
    """No fault: a builder that is busy for as long as a test wants it to be."""
    write_shard = worker.write_shard

    def write(*args: Any, **options: Any) -> Any:
        worker.write_shard = write_shard
        os.kill(os.getpid(), signal.SIGSTOP)
        return write_shard(*args, **options)

    worker.write_shard = write


#: Name -> puts the fault in place.
MUTANTS: dict[str, Callable[[], None]] = {
    "no temporary name": _no_temporary_name,
    "no fsync before rename": _no_fsync,
    "fsync after rename": _fsync_after_rename,
    "no fsync of the directory": _no_fsync_of_the_directory,
    "commit record first": _commit_record_first,
    "shard record first": _shard_record_first,
    "fsync again after a failed one": _fsync_again_after_a_failure,
    "partial file left behind": _left_behind_after_a_failure,
    "stops at its first shard": _stops_at_its_first_shard,
}

#: Those that have a fault.
FAULTY = [name for name in MUTANTS if name != "stops at its first shard"]
