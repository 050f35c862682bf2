"""Damage to a set, one bit or one cut at a time, and what it belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from llgbm_shards import ShardSet, ustar


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """One bit of a file turned over, and turned back."""
    fd = os.open(path, os.O_RDWR)
    try:
        old = os.pread(fd, 1, bit // 8)
        os.pwrite(fd, bytes([old[0] ^ (1 << bit % 8)]), bit // 8)
        yield
        os.pwrite(fd, old, bit // 8)
    finally:
        os.close(fd)


@contextlib.contextmanager
def cut(path: Path, size: int) -> Iterator[None]:
    """A file cut short, and made whole again."""
    data = path.read_bytes()
    os.truncate(path, size)
    try:
        yield
    finally:
        path.write_bytes(data)


def stretches(opened: ShardSet, shard: str) -> list[tuple[int, int, str, str]]:
    """(first byte, byte after the last, key, field) of each member of a shard: its header, data and padding."""
    found = []
    for sample in opened.shard_extents(shard):
        for extent in sample:
            start = extent.offset - ustar.BLOCK
            found.append((start, extent.offset + ustar.padded(extent.size), extent.key, extent.field))
    return found


def owners(opened: ShardSet, shard: str) -> list[tuple[str, str]]:
    """(key, field) that each byte of a shard belongs to; ("", "") for the end of the archive."""
    entry = next(entry for entry in opened.record.shards if entry.name == shard)
    table = [("", "")] * entry.size
    for start, end, key, field in stretches(opened, shard):
        table[start:end] = [(key, field)] * (end - start)
    return table
