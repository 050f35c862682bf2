"""Which sample goes into which split and shard: pure, seeded, the same on every machine.

Order and split sort by BLAKE3 of (seed, path), not by a library's random numbers, so they never change with a
version. Bodies of a set have one size, so a shard takes a fixed count of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One shard: its name, split, and the paths it takes, in order."""

    name: str
    split: str
    paths: tuple[str, ...]


def seeded_hash(seed: int, *parts: str) -> bytes:
    """BLAKE3 of the seed and the parts; lengths are included, so ("a", "bc") and ("ab", "c") differ."""
    digest = blake3(f"{seed}".encode())
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()


def split_of(seed: int, group: str, fraction: float) -> str:
    """``val`` when the group's hash, read as a fraction of its range, is under ``fraction``."""
    position = int.from_bytes(seeded_hash(seed, "split", group)[:8], "big")
    return VAL if position < fraction * 2**64 else TRAIN


def assign_shards(
    groups: Sequence[tuple[str, str]], *, pieces_bytes: int, shard_bytes: int, seed: int, val_fraction: float
) -> list[Assignment]:
    """Assign samples to shards, train first.

    Args:
        groups: (path, group) of each sample; a group is never divided between splits.
        pieces_bytes: Bytes of one sample's pieces.
        shard_bytes: Target bytes of bodies in a shard; a shard has at least one sample.
        seed: Seeds order and split.
        val_fraction: Fraction of groups that goes to ``val``.
    """
    per_shard = max(1, shard_bytes // max(1, pieces_bytes))
    by_split: dict[str, list[str]] = {TRAIN: [], VAL: []}
    for path, group in groups:
        by_split[split_of(seed, group, val_fraction)].append(path)
    assignments = []
    for split, paths in by_split.items():
        paths.sort(key=lambda path: (seeded_hash(seed, "order", path), path))
        for number, start in enumerate(range(0, len(paths), per_shard)):
            name = f"{split}-{number:06d}.tar"
            assignments.append(Assignment(name, split, tuple(paths[start : start + per_shard])))
    return assignments
