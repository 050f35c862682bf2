"""Statistics of the bodies and weights of a set, written as safetensors. Formulas are in FORMAT.md, "Statistics"."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from llgbm_pack.look.stats_pass import Pass, Sums
from llgbm_shards.errors import HeaderError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.out_directory import refuse_in_set
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import new_file, storage_errors, write_all
from llgbm_shards.tensors import MAX_HEADER_BYTES, header_bytes, parse_header, read_head

#: Tensor -> dtype and shape, as in a safetensors header.
Specs = dict[str, tuple[str, tuple[int, ...]]]
#: Bytes of an element, in all of the tensors.
_ITEM_BYTES: Final = 4
#: Twice the relative error of one float64 addition.
_ROUNDING: Final = 2.0**-52


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsReport:
    """What was computed and where it lies; ``undefined`` names the criterion weights that are NaN."""

    path: str
    file: str
    samples: int
    groups: tuple[str, ...]
    tensors: tuple[str, ...]
    undefined: tuple[str, ...]

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
    modules and pieces of zero std (NaN to DnD) are left out; what nothing is known of is NaN, its weight 0. Where no
    two samples differ there are no weights: all of them are NaN, and the report says so. ``weight.mean``, ``weight.std``
    (N, r, chunk) float32 and ``weight.count`` int32 are the same of the pieces themselves, those of zero std included:
    :class:`llgbm_loader.views.WeightView` brings them into the form of any view.

    ``progress`` is called with the bytes read since its last call. Where a sample is damaged, no file is left behind.
    """
    target = Path(file)
    _refuse_foreign(target)
    shard_set = ShardSet(path)
    run = Pass(shard_set, by_task, progress)
    specs = _specs(shard_set.layout, run.groups)
    head = header_bytes(specs)
    if len(head) > MAX_HEADER_BYTES:
        raise UsageError(
            "too many tasks for one file", where=file, got=str(len(run.groups) - 1), do="Leave out --by-task."
        )
    with storage_errors(target), new_file(target) as fd:
        write_all(fd, [head])
        undefined = _write_tensors(fd, head, run, _Weights(shard_set.layout, run.groups), specs)
    return StatsReport(
        path=path,
        file=file,
        samples=len(shard_set),
        groups=tuple(run.groups),
        tensors=tuple(sorted(specs)),
        undefined=tuple(undefined),
    )


def _write_tensors(fd: int, head: bytes, run: Pass, weights: _Weights, specs: Specs) -> list[str]:
    """Write the tensors behind the header, block by block; returns the names of criterion weights that are NaN."""
    end = len(head) + sum(_ITEM_BYTES * torch.Size(shape).numel() for _, shape in specs.values())
    os.ftruncate(fd, end)
    starts = {name: len(head) + spec.start for name, spec in parse_header(head, end).tensors.items()}

    def write(name: str, values: torch.Tensor, first: int = 0) -> None:
        before = first * values.shape[1:].numel() * _ITEM_BYTES
        os.pwrite(fd, values.contiguous().numpy().tobytes(), starts[name] + before)

    for first, bodies, raw in run.blocks():
        for group, prefix in enumerate(run.groups):
            for name, values in (weights.take(group, first, bodies) | _weight_tensors(group, raw)).items():
                write(prefix + name, values, first)
    finished = {prefix + "criterion.weights": weights.finish(at) for at, prefix in enumerate(run.groups)}
    for name, values in finished.items():
        write(name, values)
    return [name for name, values in finished.items() if values.isnan().any()]


class _Weights:
    """From sums to results; keeps only what the criterion weights need, a value a token."""

    def __init__(self, layout: Layout, groups: Sequence[str]) -> None:
        shape = (len(groups), layout.num_tokens)
        self._std_sum = torch.zeros(shape, dtype=torch.float64)
        self._std_count = torch.zeros(shape, dtype=torch.float64)

    def take(self, group: int, first: int, sums: Sums) -> dict[str, torch.Tensor]:
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
        """Mean element-wise std of each token over the mean of all elements, (N,) float32; NaN where that is 0."""
        sums, counts = self._std_sum[group], self._std_count[group]
        overall = sums.sum() / counts.sum()  # Without two samples it is NaN of itself.
        known = torch.where(counts > 0, sums / counts, 0.0)
        return (known / torch.where(overall > 0, overall, torch.nan)).float()


def _weight_tensors(group: int, sums: Sums) -> dict[str, torch.Tensor]:
    """The block's tensors of the weights themselves."""
    count = sums.count[group]
    mean, std = _mean_std(count.double(), sums.total[group], sums.squares[group])
    return {"weight.mean": mean.float(), "weight.std": std.float(), "weight.count": count}


def _mean_std(
    count: torch.Tensor, total: torch.Tensor, squares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased std; NaN where there are no values, or fewer than two."""
    mean = total / count
    spread = squares - total * mean
    # What rounding alone can make of equal values is no spread.
    spread = torch.where(spread > count * _ROUNDING * squares, spread, 0.0)
    return mean, torch.where(count > 1, spread / (count - 1), torch.nan).sqrt()


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


def _specs(layout: Layout, groups: Sequence[str]) -> Specs:
    elements, tokens = layout.pieces_shape, (layout.num_tokens,)
    specs: Specs = {
        "element.mean": ("F32", elements),
        "element.std": ("F32", elements),
        "element.count": ("I32", elements),
        "weight.mean": ("F32", elements),
        "weight.std": ("F32", elements),
        "weight.count": ("I32", elements),
        "token.mean": ("F32", tokens),
        "token.std": ("F32", tokens),
        "criterion.weights": ("F32", tokens),
    }
    return {group + name: spec for group in groups for name, spec in specs.items()}
