"""The order of an epoch, and each rank's slices of it: pure functions, the same on every machine.

An epoch is one global sequence of sample numbers, a function of (seed, epoch, sample count) and nothing else.
A global batch is the next ``batch_size * world_size`` places of it; rank k takes the k-th slice. A position is
the count of places consumed by all ranks together, so it means the same on any world size and batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_shards.errors import UsageError

#: In place of a sample number: a row that fills up the last batch under ``remainder="pad"``.
PADDING_ROW: Final = -1
REMAINDERS: Final = ("drop", "pad")
# splitmix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def epoch_order(
    seed: int, epoch: int, samples: int, *, shuffle: bool = True, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The global sequence of an epoch: (samples,), a permutation of 0 to samples-1; their order without ``shuffle``.

    With ``groups``, (samples,) the shard of each sample, shards are shuffled, and the samples of each shard among
    themselves, so that neighbours in a store stay together.
    """
    if not shuffle:
        return np.arange(samples, dtype=np.int64)
    ranks = _random(seed, epoch, "samples", samples)
    if groups is None:
        return np.argsort(ranks)
    by_group = _random(seed, epoch, "shards", int(groups.max(initial=-1)) + 1)
    return np.lexsort((ranks, by_group[groups]))


def _random(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.uint64]:
    """``count`` distinct 64-bit values, so that sorting by them has no ties to break.

    Distinct because an odd step, two splitmix64 finalizers and an exclusive-or are each one-to-one.
    """
    key = blake3(f"llgbm-order\0{seed}\0{epoch}\0{purpose}".encode()).digest(16)
    start, twist = (np.uint64(int.from_bytes(key[at : at + 8], "little")) for at in (0, 8))
    values = np.arange(1, count + 1, dtype=np.uint64)
    values *= _GAMMA
    values += start
    return _finalize(_finalize(values) ^ twist)


def _finalize(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values ^= values >> np.uint64(30)
    values *= _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Slices:
    """One rank's batches of what is left of an epoch."""

    samples: int  # length of the global sequence
    position: int  # places of it that all ranks together have consumed before
    batch_size: int  # rows of a batch on one rank
    rank: int
    world_size: int
    remainder: str  # drop leaves out an incomplete global batch at the end, pad fills it up

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            got = f"batch_size={self.batch_size} rank={self.rank} world_size={self.world_size}"
            raise UsageError("impossible slice", expected="batch_size >= 1, 0 <= rank < world_size", got=got)
        if self.remainder not in REMAINDERS:
            raise UsageError("unknown remainder", expected=" or ".join(REMAINDERS), got=repr(self.remainder))
        if not 0 <= self.position <= self.samples:
            raise UsageError(
                "position outside the epoch", expected=f"0 to {self.samples}", got=f"{self.position}"
            )

    @property
    def global_batch(self) -> int:
        """Places of the global sequence that a batch of every rank takes together."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Number of batches, equal on all ranks."""
        left = self.samples - self.position
        return -(-left // self.global_batch) if self.remainder == "pad" else left // self.global_batch

    def places(self, batch: int) -> tuple[int, int]:
        """Start and end, in the global sequence, of this rank's part of a batch; ``end <= samples``."""
        start = self.position + batch * self.global_batch + self.rank * self.batch_size
        return min(start, self.samples), min(start + self.batch_size, self.samples)

    def rows(self, order: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
        """(batch_size,) sample numbers of a batch; :data:`PADDING_ROW` where there is none."""
        start, end = self.places(batch)
        rows = np.full(self.batch_size, PADDING_ROW, np.int64)
        rows[: end - start] = order[start:end]
        return rows

    def position_after(self, batches: int) -> int:
        """The global position once every rank has consumed this many batches from here."""
        return min(self.position + batches * self.global_batch, self.samples)
