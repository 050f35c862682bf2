"""Durable writes to a local directory: temporary name, write, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from llgbm_shards.errors import DiskFullError, StorageError

#: Prefix of unfinished files; nothing with this prefix belongs to a set.
TEMPORARY: Final = ".tmp-"
_MAX_PARTS: Final = 512  # under IOV_MAX
_MAX_READ: Final = 1 << 30
Buffer = bytes | bytearray | memoryview


@contextlib.contextmanager
def storage_errors(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn an OSError on ``path`` into the error tree; a full disk says what was needed and what is free.

    Raises:
        DiskFullError: ENOSPC or EDQUOT.
        StorageError: Any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise DiskFullError(
                "no space left on the device",
                where=path.name,
                expected=f"{needed} bytes free" if needed else "",
                got=f"{free} bytes free",
                do="Free some space and run the same command again: finished shards are kept.",
            ) from error
        raise StorageError(
            error.strerror or str(error), where=path.name, do="Check the path, its permissions and the disk."
        ) from error


def write_all(fd: int, parts: Iterable[Buffer]) -> int:
    """Write the buffers one after another; returns the bytes written."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    total = 0
    while views:
        written = os.writev(fd, views[:_MAX_PARTS])
        total += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
    return total


def fsync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_set_directory(path: Path) -> None:
    """Raises StorageError when there is no directory to look for a set in."""
    with storage_errors(path):
        if not path.is_dir():
            do = "Name the directory that a build wrote."
            raise StorageError("no such directory", where=str(path), do=do)


def make_directory(path: Path) -> None:
    """Make a directory and the parents it lacks, all of them durable: a name is, once its own parent is synced."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        fsync_directory(directory.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A file that appears under its name whole and durable, or not at all.

    Yields the descriptor of a temporary file beside ``path``. When the block ends it is synced and renamed,
    and the directory is synced; when the block or a sync fails it is removed. A failed fsync is never repeated
    on the same file: its dirty pages may be gone.
    """
    temporary = path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_file(path: Path, data: Buffer) -> None:
    """Write a small file durably under its final name.

    Raises:
        StorageError: It could not be written; nothing is left behind.
    """
    with storage_errors(path, needed=len(data)), new_file(path) as fd:
        write_all(fd, [data])


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a file for reading, unless something else has its name: a FIFO would hang, a device may do anything.

    Raises:
        StorageError: It cannot be opened or read, or is not a regular file.
    """
    with storage_errors(path):
        _refuse_irregular(path.stat(), path)
        # Without waiting, and looked at again: it may have been replaced since.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _refuse_irregular(os.fstat(fd), path)
            yield fd
        finally:
            os.close(fd)


def _refuse_irregular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StorageError("not a regular file", where=path.name)


def read_range(fd: int, offset: int, size: int) -> bytes:
    """Bytes of an open file; fewer when it ends before. One call of the system gives less than 2 GiB."""
    parts: list[bytes] = []
    while size and (part := os.pread(fd, min(size, _MAX_READ), offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Read a regular file whole.

    Raises:
        StorageError: It cannot be read, is not a regular file, or is larger than ``max_bytes``.
    """
    with open_regular(path) as fd:
        size = os.fstat(fd).st_size
        if max_bytes is not None and size > max_bytes:
            got = f"{size} bytes"
            raise StorageError("too large", where=path.name, expected=f"at most {max_bytes}", got=got)
        return read_range(fd, 0, size)


def remove_temporary(directory: Path) -> int:
    """Remove what killed writers left behind; returns how many files. The caller holds the lock."""
    stale = [path for path in directory.iterdir() if path.name.startswith(TEMPORARY)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
