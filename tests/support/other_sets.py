"""Two sets of the same keys and sizes with other weights, and ways to put the one in the other's place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llgbm_pack.packing.overwrite import swap_in
from support.synthetic import SyntheticSet, write_set

FIRST = "train-000000.tar"


def two_sets(root: Path, samples: int = 12, shard_samples: int = 2) -> tuple[SyntheticSet, SyntheticSet]:
    """``root/set``, and ``root/other``: not one size tells them apart."""
    sets = [write_set(root / name, samples, shard_samples=shard_samples, texts=False, seed=seed)
            for name, seed in (("set", 0), ("other", 1))]  # fmt: skip
    assert [row.size for row in sets[0].record.shards] == [row.size for row in sets[1].record.shards]
    return sets[0], sets[1]


def exchange(made: SyntheticSet, other: SyntheticSet) -> None:
    """As ``build --overwrite`` ends: the directories change places, and the old one is deleted."""
    swap_in(other.path, made.path)


def rename_over(made: SyntheticSet, other: SyntheticSet) -> None:
    """Every shard by itself, within the directory, with the times of the old one."""
    for entry in made.record.shards:
        status = (made.path / entry.name).stat()
        os.utime(other.path / entry.name, ns=(status.st_atime_ns, status.st_mtime_ns))
        (other.path / entry.name).rename(made.path / entry.name)


def write_over(made: SyntheticSet, other: SyntheticSet) -> None:
    """Every shard in place: the inodes stay."""
    for entry in made.record.shards:
        (made.path / entry.name).write_bytes((other.path / entry.name).read_bytes())


def delete_and_copy(made: SyntheticSet, other: SyntheticSet) -> None:
    """Deleted and written anew: the file system is free to give the same inode numbers."""
    for entry in made.record.shards:
        (made.path / entry.name).unlink()
        shutil.copyfile(other.path / entry.name, made.path / entry.name)


WAYS = [exchange, rename_over, write_over, delete_and_copy]


def put_back(made: SyntheticSet) -> None:
    """As ``repair`` puts shards back: other files, equal bytes."""
    for entry in made.record.shards:
        copy = made.path / ".tmp-copy"
        shutil.copyfile(made.path / entry.name, copy)
        copy.rename(made.path / entry.name)
