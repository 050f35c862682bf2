"""One builder per output: locks that die with their process, and say who holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llgbm_shards.canonical import load_json
from llgbm_shards.errors import HeaderError, LockedError, StorageError
from llgbm_shards.storage import read_range, refuse_link, storage_errors

LOCK_NAME: Final = "lock"
#: Workers share this one; a new builder waits until those of a killed builder are gone.
WORKERS_NAME: Final = "workers"
_WORKERS_TIMEOUT_S: Final = 30.0
_NAMELESS_TIMEOUT_S: Final = 1.0
_MAX_NAME_BYTES: Final = 4096


@contextlib.contextmanager
def builder_lock(directory: Path) -> Iterator[None]:
    """Hold the only builder's lock of an output, whose ``.pack`` directory is given.

    The lock of a dead process of this host is taken over; of another host nothing is known, so it is kept.
    Only a death leaves the holder's name behind: every other end takes it out.

    Raises:
        LockedError: Another process holds it; says host, pid and since when.
        StorageError: The directory is a link, or something else stands in the place of a lock.
    """
    with storage_errors(directory):
        refuse_link(directory)
        fd = _open_current(directory / LOCK_NAME)
    try:
        with storage_errors(directory / LOCK_NAME):
            _acquire(fd, directory)
        try:
            _wait_for_workers(directory)
            yield
        finally:
            with contextlib.suppress(OSError):  # A name that stays is no more than what a death leaves.
                os.ftruncate(fd, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def refuse_locked(directory: Path) -> None:
    """Refuse before hours of planning what :func:`builder_lock` would refuse after them; writes nothing.

    Raises:
        LockedError: Another process holds the lock.
    """
    with storage_errors(directory / LOCK_NAME):
        refuse_link(directory)
        try:
            fd = _open_own(directory / LOCK_NAME, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _locked(directory, _holder(fd)) from error
        finally:
            os.close(fd)


def take_worker_lock(directory: Path) -> None:
    """Taken by each worker process before it writes anything; only its end gives it back."""
    with storage_errors(directory / WORKERS_NAME):
        refuse_link(directory)
        fd = _open_own(directory / WORKERS_NAME, os.O_RDWR | os.O_CREAT)
        fcntl.flock(fd, fcntl.LOCK_SH)


def remove_lock(directory: Path) -> None:
    """Remove the lock's own files, and their directory when nothing else is in it; the caller holds the lock."""
    with storage_errors(directory):
        for name in (LOCK_NAME, WORKERS_NAME):
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


def _open_own(path: Path, flags: int) -> int:
    """Open a regular file that has no other name; links are not followed, FIFOs not waited for."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_own(path, "a symbolic link") from error
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return fd
    os.close(fd)
    raise _not_own(path, "a file with other names" if stat.S_ISREG(status.st_mode) else "something else")


def _not_own(path: Path, got: str) -> StorageError:
    return StorageError(
        "not this program's own file",
        where=str(path),
        expected="a regular file",
        got=got,
        do="Remove it and run the same command again.",
    )


def _open_current(path: Path) -> int:
    """Open the lock file; retried when a finishing builder removed it in between."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = _open_own(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue
        if _is_current(fd, path):
            return fd
        os.close(fd)


def _is_current(fd: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _acquire(fd: int, directory: Path) -> None:
    deadline = time.monotonic() + _NAMELESS_TIMEOUT_S
    while not _try_flock(fd):
        # A nameless holder only looks whether it is locked, or has not got to writing its name.
        if _holder(fd) or time.monotonic() > deadline:
            raise _locked(directory, _holder(fd))
        time.sleep(0.02)
    if not _is_current(fd, directory / LOCK_NAME):
        raise _locked(directory, {})  # The holder finished and removed it while we were opening.
    holder = _holder(fd)
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        raise _locked(directory, holder)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})
    os.ftruncate(fd, 0)
    with storage_errors(directory / LOCK_NAME, needed=len(text)):
        os.pwrite(fd, text.encode(), 0)


def _holder(fd: int) -> dict[str, Any]:
    try:
        holder = load_json(read_range(fd, 0, _MAX_NAME_BYTES), where=LOCK_NAME, max_bytes=_MAX_NAME_BYTES)
    except HeaderError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _locked(directory: Path, holder: dict[str, Any]) -> LockedError:
    who = ", ".join(f"{name} {holder.get(name, '?')!s:.80}" for name in ("host", "pid", "since"))
    return LockedError(
        "being packed by another process",
        where=str(directory.parent),
        got=who if holder else "a builder that is just starting or ending",
        do="Wait for it to end; if that host is gone for good, delete .pack/lock and run the same command again.",
    )


def _wait_for_workers(directory: Path) -> None:
    """Workers of a killed builder notice its death and end; until then they may still write."""
    deadline = time.monotonic() + _WORKERS_TIMEOUT_S
    with storage_errors(directory / WORKERS_NAME):
        fd = _open_own(directory / WORKERS_NAME, os.O_RDWR | os.O_CREAT)
        try:
            while not _try_flock(fd):
                if time.monotonic() > deadline:
                    raise _locked(directory, {})
                time.sleep(0.05)
        finally:
            os.close(fd)


def _try_flock(fd: int) -> bool:
    """Take the lock of an open file for this process alone; False when another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
