"""--overwrite: the new set is built beside the old one, which stays whole until the new one is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

from llgbm_pack.packing.lock import builder_lock, remove_lock
from llgbm_shards.names import PACK_DIRECTORY
from llgbm_shards.storage import fsync_directory, storage_errors

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
