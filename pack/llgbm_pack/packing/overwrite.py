"""--overwrite: the new set is built beside the old one, which stays whole until the new one is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path
from typing import Final

from llgbm_pack.packing.lock import builder_lock, remove_lock
from llgbm_shards.errors import UsageError
from llgbm_shards.names import (
    BUILT_SHARD,
    CARD_NAME,
    INDEX_NAME,
    PACK_DIRECTORY,
    RECORD_NAME,
    SKIPPED_NAME,
    TEMPORARY,
    TOKENIZER_DIRECTORY,
)
from llgbm_shards.storage import fsync_directory, storage_errors

_OF_A_SET: Final = frozenset(
    {PACK_DIRECTORY, RECORD_NAME, INDEX_NAME, SKIPPED_NAME, CARD_NAME, TOKENIZER_DIRECTORY}
)
_CURRENT_DIRECTORY, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2


def replacement_directory(out: Path) -> Path:
    """Where the replacement of ``out`` is built; one fixed name, so that an interrupted one is found again."""
    real = out.resolve()
    return real.parent / f".{real.name}.replacement"


def swap_in(new: Path, out: Path) -> None:
    """Put a finished set in the place of another, then delete the old one. The caller holds the lock of ``new``.

    Raises:
        LockedError: Another process is packing into ``out`` or repairs it; the new set stays where it is.
        StorageError: A rename failed; the new set stays where it is.
    """
    out = out.resolve()
    with contextlib.ExitStack() as held, storage_errors(out):
        if not out.exists():
            new.rename(out)
        else:
            # Whoever locked it or not: a repair that began now would write into the new set.
            held.enter_context(builder_lock(out / PACK_DIRECTORY))
            _swap(new, out)
        fsync_directory(out.parent)


def _swap(new: Path, out: Path) -> None:
    try:
        if _exchange(new, out):
            shutil.rmtree(new, ignore_errors=True)
        else:
            _swap_by_two_renames(new, out)
    except BaseException:
        remove_lock(out / PACK_DIRECTORY)
        raise


def _exchange(new: Path, out: Path) -> bool:
    """Exchange two directories in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = (_CURRENT_DIRECTORY, os.fsencode(new), _CURRENT_DIRECTORY, os.fsencode(out))
    return bool(renameat2(*names, _EXCHANGE) == 0)


def _swap_by_two_renames(new: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clear(directory: Path) -> None:
    """Empty a replacement that was never begun (what an exchange left there); the caller holds its lock."""
    for path in directory.iterdir():
        if path.is_dir() and path.name != PACK_DIRECTORY:
            shutil.rmtree(path)
        elif path.name != PACK_DIRECTORY:
            path.unlink()


def refuse_foreign(out: Path) -> None:
    """Refuse to write among, or to replace, files that are not of a shard set.

    Raises:
        UsageError: ``out`` is a file, or a directory that holds something else than a set or the beginning of one.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("the output is not a directory", where=str(out), do="Choose another OUT.")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if not _of_a_set(name)]
    if names and not {PACK_DIRECTORY, RECORD_NAME} & set(names):
        foreign = names
    if foreign:
        raise UsageError(
            "the output directory holds files that are not of a shard set",
            where=str(out),
            expected="a new or empty directory, or a set",
            got=", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else ""),
            do="Choose another OUT, or move these files away.",
        )


def refuse_no_set(out: Path) -> None:
    """Refuse to mend a directory that holds no file by which a set is known.

    Raises:
        UsageError: It does not; then what else is there is not ours to touch.
        StorageError: It cannot be listed.
    """
    with storage_errors(out):
        names = {path.name for path in out.iterdir()}
    if not names & {RECORD_NAME, INDEX_NAME, SKIPPED_NAME} and not any(map(BUILT_SHARD.fullmatch, names)):
        raise UsageError("not a shard set", where=str(out), do="Name the directory that a build wrote.")


def _of_a_set(name: str) -> bool:
    return name in _OF_A_SET or name.startswith(TEMPORARY) or BUILT_SHARD.fullmatch(name) is not None
