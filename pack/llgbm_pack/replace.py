"""--overwrite: the new set is built beside the old one, which stays whole until the new one is."""

from __future__ import annotations

import shutil
from pathlib import Path

from llgbm_pack.shard_record import PACK_DIRECTORY
from llgbm_shards.errors import UsageError
from llgbm_shards.record import RECORD_NAME
from llgbm_shards.storage import fsync_directory, storage_errors


def replacement_directory(out: Path) -> Path:
    """Where the replacement of ``out`` is built; one fixed name, so that an interrupted one is found again."""
    return out.parent / f".{out.name}.replacement"


def swap_in(new: Path, out: Path) -> None:
    """Put a finished set in the place of another, then delete the old one.

    Raises:
        StorageError: A rename failed; both sets are still there, under names the message gives.
    """
    old = out.parent / f".{out.name}.replaced"
    with storage_errors(out):
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        new.rename(out)
        fsync_directory(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(out: Path) -> None:
    """Refuse to write among files that are not of a shard set.

    Raises:
        UsageError: The directory holds something and neither a set nor the beginning of one.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / PACK_DIRECTORY).is_dir() and not (out / RECORD_NAME).exists():
        raise UsageError(
            "the output directory is not empty and not a shard set",
            where=str(out),
            expected="a new or empty directory",
            got=", ".join(sorted(path.name for path in out.iterdir())[:5]),
            do="Choose another OUT.",
        )
