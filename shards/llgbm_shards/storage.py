"""Durable writes to a local directory (temporary name, write, fsync, rename, fsync of the directory), and reads.

Regular files are opened in one place, and read in two ways that go on after a short read: FUSE and network file systems
give less than was asked for. Only the end of the file ends a read early; what cannot be read is an OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llgbm_shards.errors import DiskFullError, LlgbmError, StorageError
from llgbm_shards.names import TEMPORARY

_MAX_PARTS: Final = 512  # under IOV_MAX
_MAX_READ: Final = 1 << 30
Buffer = bytes | bytearray | memoryview
#: Anything with the buffer protocol that can be written to.
Target = Any


class IrregularError(OSError):
    """Something else than a regular file has the name."""


@contextlib.contextmanager
def storage_errors(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn an OSError on ``path`` into the error tree; a full disk says what was needed and what is free.

    Raises:
        DiskFullError: ENOSPC or EDQUOT.
        StorageError: Any other OSError.
    """
    try:
        yield
    except IrregularError as error:
        raise StorageError("not a regular file", where=path.name) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "no space left on the device",
                where=path.name,
                expected=f"{needed} bytes free" if needed else "",
                got=f"{shutil.disk_usage(path.parent).free} bytes free",
                do="Free some space and run the same command again: finished shards are kept.",
            ) from error
        do = "Check the path, its permissions and the disk."
        raise StorageError(error.strerror or str(error), where=path.name, do=do) from error


@contextlib.contextmanager
def read_errors(kind: type[LlgbmError], where: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn an OSError on reading into an error of another class, where the work may go on without the file."""
    try:
        yield
    except OSError as error:
        raise kind(what, where=where, got=error.strerror or str(error)) from error


def write_all(fd: int, parts: Iterable[Buffer]) -> int:
    """Write the buffers one after another; returns the bytes written."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    total = sum(map(len, views))
    while views:
        _advance(views, os.writev(fd, views[:_MAX_PARTS]))
    return total


def _advance(views: list[memoryview], count: int) -> None:
    """Take so many bytes away from the front of the buffers."""
    while views and count >= len(views[0]):
        count -= len(views.pop(0))
    if views:
        views[0] = views[0][count:]


def fsync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_link(directory: Path) -> None:
    """Raises StorageError for a directory of the output that is a link: what is written there may be anybody's."""
    if directory.is_symlink():
        what, do = "not a directory of the output", "Remove the link and run the same command again."
        raise StorageError(what, where=str(directory), got="a symbolic link", do=do)


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


def open_file(path: str | Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file, for reading; the caller closes it. A relative path starts from ``dir_fd``.

    Raises:
        IrregularError: Something else has its name: a FIFO would hang, a device may do anything.
        OSError: It cannot be opened.
    """
    _refuse_irregular(os.stat(path, dir_fd=dir_fd))
    # Without waiting, and looked at again: it may have been replaced since.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        _refuse_irregular(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_irregular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IrregularError(errno.EINVAL, "not a regular file")


@contextlib.contextmanager
def opened_file(path: str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """The descriptor of :func:`open_file` for a block; OSErrors stay what they are."""
    fd = open_file(path, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read_range(fd: int, offset: int, size: int) -> bytes:
    """Bytes of an open file; fewer only when it ends before. One call of the system gives less than 2 GiB."""
    parts: list[bytes] = []
    while size and (part := os.pread(fd, min(size, _MAX_READ), offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(fd: int, targets: Sequence[Target], offset: int) -> int:
    """Fill the targets, one after the other, from an open file; returns how many bytes it has too few."""
    views = [memoryview(target).cast("B") for target in targets]
    views = [view for view in views if len(view)]
    while views:
        count = os.preadv(fd, views, offset)
        if not count:
            break
        offset += count
        _advance(views, count)
    return sum(map(len, views))


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; one more than ``max_bytes``, and no further ones, when it is larger.

    Raises:
        IrregularError: Something else than a regular file has the name.
        OSError: It cannot be read.
    """
    with opened_file(path) as fd:
        # By its size, not by what it may have: a buffer of the largest size would be made for each small file.
        size = min(os.fstat(fd).st_size, max_bytes) + 1
        data = read_range(fd, 0, size)
        grown = len(data) == size <= max_bytes
        return data + read_range(fd, size, max_bytes + 1 - size) if grown else data


def read_file(path: Path, *, max_bytes: int | None = None, dir_fd: int | None = None) -> bytes:
    """Read a regular file whole.

    Raises:
        StorageError: It cannot be read, is not a regular file, or is larger than ``max_bytes``.
    """
    with storage_errors(path), opened_file(path, dir_fd=dir_fd) as fd:
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
