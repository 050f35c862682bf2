"""The few files of an output that are written in place: opened where they stand, never where a link leads."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from llgbm_shards.errors import StorageError


def open_own(path: Path, flags: int) -> int:
    """Open a regular file that has no other name; links are not followed, FIFOs not waited for.

    Raises:
        StorageError: Something else stands there.
        OSError: As ``os.open`` does.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _foreign(path, "a symbolic link") from error
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return fd
    os.close(fd)
    got = "a file with other names" if stat.S_ISREG(status.st_mode) else "something else"
    raise _foreign(path, got)


def refuse_link(directory: Path) -> None:
    """Refuse a directory of the output that is a link: what is written or removed there may be anybody's.

    Raises:
        StorageError: It is one.
    """
    if directory.is_symlink():
        raise StorageError(
            "not a directory of the output",
            where=str(directory),
            got="a symbolic link",
            do="Remove the link and run the same command again.",
        )


def _foreign(path: Path, got: str) -> StorageError:
    return StorageError(
        "not this program's own file",
        where=str(path),
        expected="a regular file",
        got=got,
        do="Remove it and run the same command again.",
    )
