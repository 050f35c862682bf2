"""Cuts the modules of a layout into tiles: runs of equal pieces that are handled in one go.

Neighbouring tiles of equal piece size share a batch, whose sums are taken together; its float64 copy stays in a
processor's second-level cache. Moments are rounded and tested for all pieces of a checkpoint at once: few large calls
matter, each costs a few microseconds, as much as the arithmetic of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llgbm_loader.tensors import bits
from llgbm_pack.tokenize.moments import Counts, Float64s
from llgbm_shards.layout import Layout, Module

#: Canonical module name to (lora_A (r, in), lora_B (out, r)).
Pairs = Mapping[str, tuple[Tensor, Tensor]]

_BATCH_ELEMENTS: Final = 42 * 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Where a tile lies."""

    module: Module  # the module it is cut from
    side: str  # ``A`` or ``B``
    token: int  # its first token
    count: int  # pieces in it
    start: int  # first column (of A, or of B transposed)
    width: int  # real columns of each piece; less than the chunk only in the last piece of a side
    rank: int  # real rows of each piece

    @property
    def tokens(self) -> slice:
        """The tokens it becomes."""
        return slice(self.token, self.token + self.count)

    @property
    def tensor_name(self) -> str:
        """Name of the tensor it is cut from, for messages."""
        return f"{self.module.name}.lora_{self.side}.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A cut bound to the memory it reads and writes; P pieces of r rows and w columns."""

    cut: Cut  # where it lies
    tensor: Tensor  # the whole source tensor
    source: Tensor  # the pieces in the order they lie in memory: (P, r, w) of A, (P, w, r) of B
    pieces: Tensor  # the same elements as (P, r, w)
    target: Tensor  # (P, r, w), where they go
    copy: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]  # bits of ``target`` and of ``pieces``
    wide: Tensor  # its part of the batch's float64 scratch, shaped as ``source``


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Neighbouring tiles whose pieces have n elements each; T pieces in all."""

    tiles: tuple[Tile, ...]  # the tiles, in token order
    rows: Tensor  # float64 scratch (T, n) that the tiles' ``wide`` are parts of
    left: Float64s  # the same scratch in numpy, (T, 1, n)
    right: Float64s  # the same scratch in numpy, (T, n, 1)
    ones: Tensor  # (n,) float64 ones
    sums: Tensor  # (T,) sums of the elements
    squares: Float64s  # (T, 1, 1) sums of squares


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All batches of a checkpoint; N tokens in all. An absent module's pieces count as one zero element each."""

    batches: tuple[Batch, ...]  # in token order
    counts: Counts  # constants of the N pieces
    sums: Float64s  # (N,) sums of the elements
    squares: Float64s  # (N,) sums of squares

    @property
    def tiles(self) -> Iterator[Tile]:
        """All tiles, in token order."""
        return (tile for batch in self.batches for tile in batch.tiles)


def cut_module(module: Module, rank: int, chunk: int) -> Iterator[Cut]:
    """Yields the tiles of a module in token order: all of A, then all of B; pieces have ``chunk`` columns."""
    most = max(1, _BATCH_ELEMENTS // (rank * chunk))
    token = module.first_token
    for side, features in (("A", module.in_features), ("B", module.out_features)):
        whole, rest = divmod(features, chunk)
        runs = [(first, min(most, whole - first), chunk) for first in range(0, whole, most)]
        for first, count, width in [*runs, *([(whole, 1, rest)] if rest else [])]:
            yield Cut(
                module=module,
                side=side,
                token=token + first,
                count=count,
                start=first * chunk,
                width=width,
                rank=rank,
            )
        token += whole + bool(rest)


def cut_batches(layout: Layout, ranks: Mapping[str, int]) -> list[list[Cut]]:
    """Batches of consecutive tokens, in token order; a module that ``ranks`` does not name is absent."""
    batches: list[list[Cut]] = []
    left = 0
    for module in layout.modules:
        if module.name not in ranks:
            continue
        for cut in cut_module(module, ranks[module.name], layout.chunk):
            size = cut.count * _piece_size(cut)
            last = batches[-1][-1] if batches else cut
            adjoins = cut.token == last.token + last.count and _piece_size(cut) == _piece_size(last)
            if size > left or not adjoins:
                batches.append([])
                left = _BATCH_ELEMENTS
            batches[-1].append(cut)
            left -= size
    return batches


def _piece_size(cut: Cut) -> int:
    return cut.rank * cut.width


class Binder:
    """Builds tiles: all views of source, scratch and target that the arithmetic needs."""

    def __init__(self, layout: Layout) -> None:
        largest = max(_BATCH_ELEMENTS, layout.rank * layout.chunk)
        self._ones = torch.ones(layout.rank * layout.chunk, dtype=torch.float64)
        self._wide = torch.zeros(largest, dtype=torch.float64)
        self._sums = torch.zeros(layout.num_tokens, dtype=torch.float64)
        self._squares = torch.zeros(layout.num_tokens, dtype=torch.float64)

    def work(self, batches: list[list[Cut]], pairs: Pairs, target: Tensor) -> Work:
        """Binds all cuts to source tensors and the pieces they go to."""
        sizes = [1] * len(self._sums)
        for cut in (cut for batch in batches for cut in batch):
            sizes[cut.tokens] = [_piece_size(cut)] * cut.count
        self._sums.zero_()
        self._squares.zero_()
        return Work(
            batches=tuple(self._batch(batch, pairs, target) for batch in batches),
            counts=Counts.of(sizes),
            sums=self._sums.numpy(),
            squares=self._squares.numpy(),
        )

    def _batch(self, cuts: list[Cut], pairs: Pairs, target: Tensor) -> Batch:
        size, tokens = _piece_size(cuts[0]), slice(cuts[0].token, cuts[-1].tokens.stop)
        count = tokens.stop - tokens.start
        rows = self._wide[: count * size].view(count, size)
        tiles = []
        for cut in cuts:
            first = cut.token - tokens.start
            tiles.append(_tile(cut, pairs[cut.module.name], target, rows[first : first + cut.count]))
        return Batch(
            tiles=tuple(tiles),
            rows=rows,
            left=rows.numpy()[:, None, :],
            right=rows.numpy()[:, :, None],
            ones=self._ones[:size],
            sums=self._sums[tokens],
            squares=self._squares[tokens].numpy()[:, None, None],
        )


def _tile(cut: Cut, pair: tuple[Tensor, Tensor], target: Tensor, wide: Tensor) -> Tile:
    count, rank, width = cut.count, cut.rank, cut.width
    tensor = pair[cut.side == "B"].detach()
    columns = slice(cut.start, cut.start + count * width)
    place = target[cut.tokens, :rank, :width]
    if cut.side == "A":
        source = pieces = tensor[:, columns].view(rank, count, width).transpose(0, 1)
    else:
        source = tensor[columns].view(count, width, rank)
        pieces = source.transpose(1, 2)
    return Tile(
        cut=cut,
        tensor=tensor,
        source=source,
        pieces=pieces,
        target=place,
        copy=(bits(place).numpy(), bits(pieces).numpy()),
        wide=wide.view(source.shape),
    )
