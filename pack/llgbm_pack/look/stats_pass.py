"""One pass over the bodies of a set, in memory that does not grow with it.

Tokens are taken block by block; within a block every sample's range is read once and folded into float64 sums.
A streaming XXH3 per sample runs along, so each body is verified as a whole although it is never held as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import xxhash

from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.members import SUFFIX, pieces_header
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import read_into, storage_errors

#: Bytes of float64 sums held at a time, over all groups.
_SUM_BYTES: Final = 96 << 20
_TORCH_BITS: Final = {2: torch.int16, 4: torch.int32}


@dataclass(slots=True)
class Sums:
    """Per group, over the samples: counts and float64 sums of one block, (groups, tokens, r, chunk)."""

    count: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor


class Pass:
    """One pass over the bodies of a set."""

    def __init__(self, shard_set: ShardSet, by_task: bool, progress: Callable[[int], None] | None) -> None:
        self._set, self._layout, self._progress = shard_set, shard_set.layout, progress
        rows = shard_set.index().to_pylist()
        if not rows:
            raise UsageError("the set has no samples", where=str(shard_set.path))
        shard_set.require_weights()
        body = shard_set.record.members.index("pieces")
        self._bodies = [
            extents[body]
            for entry in shard_set.record.shards
            for extents in shard_set.shard_extents(entry.name)
        ]
        tasks = sorted({row["task"] for row in rows}) if by_task else []
        self.groups = ["", *(f"task.{task}." for task in tasks)]
        group = {task: number for number, task in enumerate(tasks, 1)}
        self._members = [[0, *([group[row["task"]]] if by_task else [])] for row in rows]
        head = pieces_header(self._layout)
        self._head_size = len(head)
        self._hashes = [xxhash.xxh3_64(head) for _ in rows]

    def blocks(self) -> Iterator[tuple[int, Sums]]:
        """(first token, sums) block by block; after the last one every body is proven."""
        layout = self._layout
        token_sums = 8 * layout.rank * layout.chunk * 3 * len(self.groups)
        step = max(1, _SUM_BYTES // token_sums)
        for first in range(0, layout.num_tokens, step):
            yield first, self._block(first, min(step, layout.num_tokens - first))
        for extent, digest in zip(self._bodies, self._hashes, strict=True):
            if digest.intdigest() != extent.xxh3_64:
                raise _damaged(extent)

    def _block(self, first: int, tokens: int) -> Sums:
        layout = self._layout
        shape = (len(self.groups), tokens, layout.rank, layout.chunk)
        sums = Sums(
            torch.zeros(shape, dtype=torch.int32), *(torch.zeros(shape, dtype=torch.float64) for _ in "ab")
        )
        size = tokens * layout.rank * layout.chunk * layout.itemsize
        buffer = memoryview(bytearray(size))
        bits = torch.frombuffer(buffer, dtype=_TORCH_BITS[layout.itemsize])
        values = bits.view(TORCH_DTYPE[layout.dtype]).view(shape[1:])
        offset = self._head_size + first * layout.rank * layout.chunk * layout.itemsize
        bodies = zip(self._bodies, self._hashes, self._members, strict=True)
        for shard, of_shard in itertools.groupby(bodies, key=lambda body: body[0].shard):
            with self._set.open_shard(shard) as fd:
                for extent, digest, groups in of_shard:
                    with storage_errors(Path(shard)):
                        missing = read_into(fd, [buffer], extent.offset + offset)
                    if missing:
                        raise _damaged(extent)
                    digest.update(buffer)
                    _fold(values, sums, groups)
                    if self._progress is not None:
                        self._progress(size)
        return sums


def _fold(values: torch.Tensor, sums: Sums, groups: Sequence[int]) -> None:
    """Add one sample's block; NaN and pieces that are all zero (zero std) are left out."""
    wide = values.to(torch.float64)
    known = ~torch.isnan(wide)
    wide.nan_to_num_(nan=0.0)
    known &= (wide != 0).any(dim=(1, 2), keepdim=True)
    squares = wide.square()
    for group in groups:
        sums.count[group] += known
        sums.total[group] += wide
        sums.squares[group] += squares


def _damaged(extent: MemberExtent) -> DamageError:
    return DamageError(
        "damaged",
        shard=extent.shard,
        key=extent.key,
        member=SUFFIX[extent.field],
        do="Run `llgbm-pack check` for the whole picture.",
    )
