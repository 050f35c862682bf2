"""Statistics of the bodies of a set, in one pass over its bytes and in memory that does not grow with it.

Tokens are taken block by block; within a block every sample's range is read once and folded into float64 sums.
A streaming XXH3 per sample runs along, so each body is verified as a whole although it is never held as a whole.
Formulas are in FORMAT.md, "Statistics".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import xxhash

from llgbm_pack.outside import refuse_in_set
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.sample import SUFFIX, body_header
from llgbm_shards.shardset import MemberExtent, ShardSet, row_extents
from llgbm_shards.storage import new_file, storage_errors, write_all
from llgbm_shards.tensors import header_bytes, parse_header, read_head

#: Bytes of float64 sums held at a time, over all groups.
_SUM_BYTES: Final = 96 << 20
_TORCH_BITS: Final = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsReport:
    """What was computed and where it lies."""

    path: str
    file: str
    samples: int
    groups: tuple[str, ...]
    tensors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


def write_stats(
    path: str, file: str, *, by_task: bool = False, progress: Callable[[int], None] | None = None
) -> StatsReport:
    """Compute the statistics of a set and write them as safetensors.

    Tensors, for the whole set and with ``by_task`` again under ``task.NAME.``: ``element.mean``, ``element.std``
    (N, r, chunk) float32 and ``element.count`` int32 over the samples; ``token.mean``, ``token.std`` (N,) float32
    over samples and elements; ``criterion.weights`` (N,) float32, the weights of DnD's loss. Padding, absent
    modules and pieces of zero std (NaN to DnD) are left out; what nothing is known of is NaN, its weight 0.

    Args:
        path: The set.
        file: Where to write.
        by_task: Also for each task alone.
        progress: Called with the bytes read since the last call.

    Raises:
        UsageError: The set has no samples, or the file is in a set, or is there and is not one of these.
        DamageError: A body is not what was written; nothing is left behind.
        StorageError: Something cannot be read or written.
    """
    target = Path(file)
    _refuse_foreign(target)
    opened = ShardSet(path)
    run = _Run(opened, by_task, progress)
    specs = _specs(opened.layout, run.groups)
    head = header_bytes(specs)
    offsets = {
        name: spec.start + len(head) for name, spec in parse_header(head, _end(head, specs)).tensors.items()
    }
    with storage_errors(target), new_file(target) as fd:
        write_all(fd, [head])
        os.ftruncate(fd, _end(head, specs))
        weights = _Weights(opened.layout, run.groups)
        for first, sums in run.blocks():
            for group, name in enumerate(run.groups):
                for tensor, values in weights.take(group, first, sums).items():
                    row = values[0].numel() if len(values) else 0
                    os.pwrite(
                        fd, values.contiguous().numpy().tobytes(), offsets[name + tensor] + first * row * 4
                    )
        for group, name in enumerate(run.groups):
            os.pwrite(fd, weights.finish(group).numpy().tobytes(), offsets[name + "criterion.weights"])
    return StatsReport(
        path=path, file=file, samples=len(opened), groups=tuple(run.groups), tensors=tuple(sorted(specs))
    )


@dataclass(slots=True)
class _Sums:
    """Per group, over the samples: counts and float64 sums of one block, (groups, tokens, r, chunk)."""

    count: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor


class _Run:
    """One pass over the bodies of a set."""

    def __init__(self, opened: ShardSet, by_task: bool, progress: Callable[[int], None] | None) -> None:
        self._set, self._layout, self._progress = opened, opened.layout, progress
        rows = opened.index().to_pylist()
        if not rows:
            raise UsageError("the set has no samples", where=str(opened.path))
        fields = opened.record.members
        self._bodies = [row_extents(row, fields)[fields.index("body")] for row in rows]
        tasks = sorted({row["task"] for row in rows}) if by_task else []
        self.groups = ["", *(f"task.{task}." for task in tasks)]
        self._members = [[0, *([1 + tasks.index(row["task"])] if by_task else [])] for row in rows]
        head = body_header(self._layout)
        self._head_size = len(head)
        self._hashes = [xxhash.xxh3_64(head) for _ in rows]

    def blocks(self) -> Iterator[tuple[int, _Sums]]:
        """(first token, sums) block by block; after the last one every body is proven."""
        layout = self._layout
        token_sums = 8 * layout.rank * layout.chunk * 3 * len(self.groups)
        step = max(1, _SUM_BYTES // token_sums)
        for first in range(0, layout.num_tokens, step):
            yield first, self._block(first, min(step, layout.num_tokens - first))
        for extent, digest in zip(self._bodies, self._hashes, strict=True):
            if digest.intdigest() != extent.xxh3_64:
                raise _damaged(extent)

    def _block(self, first: int, tokens: int) -> _Sums:
        layout = self._layout
        shape = (len(self.groups), tokens, layout.rank, layout.chunk)
        sums = _Sums(
            torch.zeros(shape, dtype=torch.int32), *(torch.zeros(shape, dtype=torch.float64) for _ in "ab")
        )
        size = tokens * layout.rank * layout.chunk * layout.itemsize
        buffer = memoryview(bytearray(size))
        bits = torch.frombuffer(buffer, dtype=_TORCH_BITS[layout.itemsize])
        values = bits.view(getattr(torch, layout.dtype)).view(shape[1:])
        offset = self._head_size + first * layout.rank * layout.chunk * layout.itemsize
        with _OpenShard(self._set.path) as shard:
            for extent, digest, groups in zip(self._bodies, self._hashes, self._members, strict=True):
                if shard.read(extent, offset, buffer) != size:
                    raise _damaged(extent)
                digest.update(buffer)
                _fold(values, sums, groups)
                if self._progress is not None:
                    self._progress(size)
        return sums


def _fold(values: torch.Tensor, sums: _Sums, groups: Sequence[int]) -> None:
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


class _Weights:
    """From sums to results; keeps only what the criterion weights need, a value a token."""

    def __init__(self, layout: Layout, groups: Sequence[str]) -> None:
        shape = (len(groups), layout.num_tokens)
        self._std_sum = torch.zeros(shape, dtype=torch.float64)
        self._std_count = torch.zeros(shape, dtype=torch.float64)

    def take(self, group: int, first: int, sums: _Sums) -> dict[str, torch.Tensor]:
        """The block's tensors of one group."""
        count, total, squares = sums.count[group], sums.total[group], sums.squares[group]
        mean, std = _mean_std(count.double(), total, squares)
        token = [part.sum(dim=(1, 2)) for part in (count.double(), total, squares)]
        token_mean, token_std = _mean_std(*token)
        block = slice(first, first + len(count))
        self._std_sum[group, block] = std.nansum(dim=(1, 2))
        self._std_count[group, block] = (~std.isnan()).sum(dim=(1, 2)).double()
        return {
            "element.mean": mean.float(),
            "element.std": std.float(),
            "element.count": count,
            "token.mean": token_mean.float(),
            "token.std": token_std.float(),
        }

    def finish(self, group: int) -> torch.Tensor:
        """Mean element-wise std of each token over the mean of all elements, (N,) float32."""
        sums, counts = self._std_sum[group], self._std_count[group]
        overall = sums.sum() / counts.sum()
        return torch.where(counts > 0, sums / counts / overall, 0.0).float()


def _mean_std(
    count: torch.Tensor, total: torch.Tensor, squares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased std; NaN where there are no values, or fewer than two."""
    mean = total / count
    variance = (squares - total * mean).clamp_min(0) / (count - 1)
    return mean, torch.where(count > 1, variance, torch.nan).sqrt()


class _OpenShard:
    """Keeps the shard in hand open: samples come in shard order."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._name, self._fd = directory, "", -1

    def __enter__(self) -> _OpenShard:
        return self

    def read(self, extent: MemberExtent, offset: int, buffer: memoryview) -> int:
        """Read into the buffer from an offset within the member; returns bytes read."""
        path = self._directory / extent.shard
        with storage_errors(path):
            if self._name != extent.shard:
                self.__exit__()
                self._fd, self._name = os.open(path, os.O_RDONLY | os.O_CLOEXEC), extent.shard
            return os.preadv(self._fd, [buffer], extent.offset + offset)

    def __exit__(self, *_exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refuse_foreign(target: Path) -> None:
    """Refuse a place in a set, and whatever is there unless it is an earlier file of statistics."""
    refuse_in_set(target, "FILE")
    if not os.path.lexists(target):
        return
    try:
        with storage_errors(target):
            head, size = read_head(target)
        ours = "criterion.weights" in parse_header(head, size).tensors
    except HeaderError:
        ours = False
    if not ours:
        raise UsageError(
            "this is not written over",
            where=str(target),
            expected="a new file, or an earlier one of `stats`",
            got="a directory" if target.is_dir() else "something else",
            do="Choose another FILE.",
        )


def _specs(layout: Layout, groups: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    tokens = (layout.num_tokens,)
    for group in groups:
        for name in ("element.mean", "element.std"):
            specs[group + name] = ("F32", layout.body_shape)
        specs[group + "element.count"] = ("I32", layout.body_shape)
        for name in ("token.mean", "token.std", "criterion.weights"):
            specs[group + name] = ("F32", tokens)
    return specs


def _end(head: bytes, specs: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    return len(head) + sum(4 * torch.Size(shape).numel() for _, shape in specs.values())


def _damaged(extent: MemberExtent) -> DamageError:
    return DamageError(
        "damaged",
        shard=extent.shard,
        key=extent.key,
        member=SUFFIX[extent.field],
        do="Run `llgbm-pack check` for the whole picture.",
    )
