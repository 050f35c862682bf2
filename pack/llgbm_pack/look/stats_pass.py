"""One pass over the weights of a set, in memory that does not grow with it.

Tokens are taken block by block; within a block every sample's range is read once and folded into float64 sums.
A streaming XXH3 per member runs along, so each sample is verified as a whole although it is never held as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import xxhash
from torch import Tensor

from llgbm_loader.body import make_body
from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.members import SUFFIX, pieces_header
from llgbm_shards.npy import npy_header
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import read_into

#: Bytes of float64 sums held at a time, over all groups.
_SUM_BYTES: Final = 96 << 20
_TORCH_BITS: Final = {2: torch.int16, 4: torch.int32}


@dataclass(slots=True)
class Sums:
    """Per group, over the samples: counts and float64 sums of one block, (groups, tokens, r, chunk)."""

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Sums:
        """No sample yet."""
        wide = (torch.zeros(shape, dtype=torch.float64) for _ in "ab")
        return cls(torch.zeros(shape, dtype=torch.int32), *wide)

    def add(self, values: Tensor, known: Tensor, groups: Sequence[int]) -> None:
        """Add one sample's block (tokens, r, chunk) to its groups; what is not known is left out."""
        wide = values.to(torch.float64).masked_fill_(~known, 0.0)
        squares = wide.square()
        for group in groups:
            self.count[group] += known
            self.total[group] += wide
            self.squares[group] += squares


class Pass:
    """One pass over the pieces and scales of a set."""

    def __init__(self, shard_set: ShardSet, by_task: bool, progress: Callable[[int], None] | None) -> None:
        self._set, self._layout, self._progress = shard_set, shard_set.layout, progress
        tasks = shard_set.index(["task"]).column("task").to_pylist()
        if not tasks:
            raise UsageError("the set has no samples", where=str(shard_set.path))
        shard_set.require_weights()
        names = sorted(set(tasks)) if by_task else []
        self.groups = ["", *(f"task.{name}." for name in names)]
        number = {name: at for at, name in enumerate(names, 1)}
        self._samples = [
            _Sample(self._member(extents, "pieces"), self._member(extents, "scales"), groups)
            for groups, extents in zip(
                ([0, number[task]] if by_task else [0] for task in tasks), self._extents(), strict=True
            )
        ]

    def _extents(self) -> Iterator[list[MemberExtent]]:
        for entry in self._set.record.shards:
            yield from self._set.shard_extents(entry.name)

    def _member(self, extents: Sequence[MemberExtent], field: str) -> _Member:
        layout = self._layout
        head = pieces_header(layout) if field == "pieces" else npy_header((layout.num_tokens, 2))
        return _Member(extents[self._set.record.members.index(field)], len(head), xxhash.xxh3_64(head))

    def blocks(self) -> Iterator[tuple[int, Sums, Sums]]:
        """(first token, sums of bodies, sums of weights) block by block; after the last one every byte is proven."""
        layout = self._layout
        token_sums = 2 * 8 * layout.rank * layout.chunk * 3 * len(self.groups)
        step = max(1, _SUM_BYTES // token_sums)
        for first in range(0, layout.num_tokens, step):
            yield first, *self._block(first, min(step, layout.num_tokens - first))
        for sample in self._samples:
            for member in (sample.pieces, sample.scales):
                if member.digest.intdigest() != member.extent.xxh3_64:
                    raise _damaged(member.extent)

    def _block(self, first: int, tokens: int) -> tuple[Sums, Sums]:
        layout = self._layout
        shape = (tokens, layout.rank, layout.chunk)
        bodies, weights = (Sums.zeros((len(self.groups), *shape)) for _ in "bw")
        token_bytes = layout.rank * layout.chunk * layout.itemsize
        raw, raw_scales = memoryview(bytearray(tokens * token_bytes)), memoryview(bytearray(tokens * 8))
        bits = torch.frombuffer(raw, dtype=_TORCH_BITS[layout.itemsize])
        pieces = bits.view(TORCH_DTYPE[layout.dtype]).view(shape)
        scales = torch.frombuffer(raw_scales, dtype=torch.float32).view(tokens, 2)
        for shard, samples in itertools.groupby(self._samples, key=lambda one: one.pieces.extent.shard):
            with self._set.open_shard(shard) as fd:
                for sample in samples:
                    sample.pieces.read(fd, raw, first * token_bytes)
                    sample.scales.read(fd, raw_scales, first * 8)
                    known = ~pieces.isnan()
                    weights.add(pieces, known, sample.groups)
                    # Pieces of zero std are NaN to Drag-and-Drop-LLMs.
                    known &= (scales[:, 1] != 0)[:, None, None]
                    bodies.add(make_body(pieces, scales), known, sample.groups)
                    if self._progress is not None:
                        self._progress(len(raw) + len(raw_scales))
        return bodies, weights


@dataclass(frozen=True, slots=True)
class _Member:
    """A member that is read block by block, and hashed on the way."""

    extent: MemberExtent
    head_bytes: int
    digest: xxhash.xxh3_64

    def read(self, fd: int, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from an offset behind the header."""
        if read_into(fd, [buffer], self.extent.offset + self.head_bytes + offset):
            raise _damaged(self.extent)
        self.digest.update(buffer)


@dataclass(frozen=True, slots=True)
class _Sample:
    pieces: _Member
    scales: _Member
    groups: list[int]


def _damaged(extent: MemberExtent) -> DamageError:
    return DamageError(
        "damaged",
        shard=extent.shard,
        key=extent.key,
        member=SUFFIX[extent.field],
        do="Run `llgbm-pack check` for the whole picture.",
    )
