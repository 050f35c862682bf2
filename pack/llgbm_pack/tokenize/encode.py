"""From LoRA matrices to pieces and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llgbm_loader.body import make_body
from llgbm_loader.tensors import TORCH_DTYPE, bits
from llgbm_pack.tokenize.moments import LARGEST, Float32s, decide, fold_moments
from llgbm_pack.tokenize.tiles import Binder, Pairs, Work, cut_batches
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import PADDING_BITS, Layout

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """All views for one set of tensors; used again as long as the same tensors come."""

    sources: tuple[tuple[Tensor, Tensor] | None, ...]  # (A, B) per module of the layout, None where absent
    pieces: Tensor  # the pieces it writes
    scales: Tensor  # the scales it writes
    work: Work  # all tiles, bound to these tensors
    padding: tuple[Tensor, ...]  # integer views of the parts of the pieces that hold padding


class PieceEncoder:
    """Cuts LoRA matrices into pieces, puts them in order, and computes their scales.

    Mean and std of a piece are those that ``llgbm_pack.tokenize.moments`` defines. The pieces are the source's values,
    bit for bit: :func:`llgbm_loader.body.make_body` makes the body of them.

    The views a set of tensors needs are built once and kept: to encode many checkpoints of one layout fast, read
    each into the same buffer, so that tensors come at the same addresses, and pass the same pieces and scales. The
    encoder holds on to the last tensors it was given. It is not for use by two threads at once.

    Args:
        layout: The layout of the pieces to make.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._dtype = TORCH_DTYPE[layout.dtype]
        self._binder = Binder(layout)
        self._modules = {module.name: module for module in layout.modules}
        self._plan: _Plan | None = None

    def encode(self, pairs: Pairs, pieces: Tensor, scales: Tensor) -> None:
        """Writes the pieces and scales of one checkpoint.

        Args:
            pairs: Canonical module name to (A (r_i, in), B (out, r_i)), on the CPU, in the layout's dtype, r_i at
                most the layout's rank. A module that is not named becomes padding with scales (0, 0).
            pieces: (N, r, chunk), contiguous, in the layout's dtype; overwritten, padding too.
            scales: (N, 2) float32; overwritten with the mean and std used.

        Raises:
            CheckpointError: A tensor does not fit, holds non-finite values (tensor and count are named), or its body
                would not be finite in its dtype. Pieces and scales are then partly written.
            UsageError: ``pieces`` or ``scales`` have the wrong form.
        """
        with torch.no_grad():
            plan = self._plan_for(pairs, pieces, scales)
            for view in plan.padding:
                view.fill_(PADDING_BITS[self.layout.dtype])
            self._encode(plan.work, scales)

    def _plan_for(self, pairs: Pairs, pieces: Tensor, scales: Tensor) -> _Plan:
        plan = self._plan
        modules = self.layout.modules
        if plan is not None and plan.pieces is pieces and plan.scales is scales:
            present = 0
            for module, known in zip(modules, plan.sources, strict=True):
                pair = pairs.get(module.name)
                present += pair is not None
                if not _same(pair, known):
                    break
            else:
                if present == len(pairs):
                    return plan
        self._plan = None
        self._check_targets(pieces, scales)
        for name in sorted(pairs.keys() - self._modules.keys()):
            raise CheckpointError("module is not in the layout", where=name)
        self._plan = self._bind(pairs, pieces, scales)
        return self._plan

    def _bind(self, pairs: Pairs, pieces: Tensor, scales: Tensor) -> _Plan:
        ranks = {name: self._check_pair(name, pair) for name, pair in pairs.items()}
        batches = cut_batches(self.layout, ranks)
        padding: list[Tensor] = []
        for module in self.layout.modules:
            if module.name not in ranks:
                end = module.first_token + module.tokens_a + module.tokens_b
                padding.append(bits(pieces)[module.first_token : end])
        for cut in (cut for batch in batches for cut in batch):
            rows = bits(pieces)[cut.tokens]
            padding += [
                part for part in (rows[:, cut.rank :], rows[:, : cut.rank, cut.width :]) if part.numel()
            ]
        return _Plan(
            sources=tuple(pairs.get(module.name) for module in self.layout.modules),
            pieces=pieces,
            scales=scales,
            work=self._binder.work(batches, pairs, pieces),
            padding=tuple(padding),
        )

    def _encode(self, work: Work, scales: Tensor) -> None:
        dtype = self.layout.dtype
        for batch in work.batches:
            for tile in batch.tiles:
                tile.wide.copy_(tile.source)
                np.copyto(*tile.copy)
            torch.mv(batch.rows, batch.ones, out=batch.sums)
            np.matmul(batch.left, batch.right, out=batch.squares)
        # Squares of 16 and 32 bit floats can neither over- nor underflow in float64.
        largest = float(work.squares.max())
        if not np.isfinite(largest):
            _raise_non_finite(work)
        mean, std, still_open = decide(work.sums, work.squares, work.counts, dtype)
        _fold_open(work, still_open, mean, std, dtype)
        used = scales.numpy()
        used[:, 0] = mean
        used[:, 1] = std
        # No element exceeds the root of the sum of squares, and no difference twice the largest element.
        if 2 * largest**0.5 >= LARGEST[dtype]:
            _check_range(work, scales)

    def _check_pair(self, name: str, pair: tuple[Tensor, Tensor]) -> int:
        module = self._modules[name]
        rank = pair[0].shape[0] if pair[0].ndim == 2 else 0
        wanted = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
        for (side, shape), tensor in zip(wanted.items(), pair, strict=True):
            where = f"{name}.lora_{side}.weight"
            if tensor.dtype != self._dtype or tensor.device.type != "cpu":
                got = f"{tensor.dtype} on {tensor.device}"
                raise CheckpointError(
                    "tensor has the wrong type", where=where, expected=f"{self._dtype}", got=got
                )
            if tuple(tensor.shape) != shape or rank < 1:
                got = f"{tuple(tensor.shape)}"
                raise CheckpointError("tensor has the wrong shape", where=where, expected=f"{shape}", got=got)
        if rank > self.layout.rank:
            expected = f"at most {self.layout.rank}"
            raise CheckpointError("rank is too large", where=name, expected=expected, got=f"{rank}")
        return rank

    def _check_targets(self, pieces: Tensor, scales: Tensor) -> None:
        rows = (self.layout.num_tokens, 2)
        for where, tensor, shape, dtype in (
            ("pieces", pieces, self.layout.pieces_shape, self._dtype),
            ("scales", scales, rows, torch.float32),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
                expected = f"contiguous {dtype} {shape}"
                got = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise UsageError("cannot be written", where=where, expected=expected, got=got)


def _same(pair: tuple[Tensor, Tensor] | None, known: tuple[Tensor, Tensor] | None) -> bool:
    if pair is None or known is None:
        return pair is known
    # The plan keeps the known tensors' memory alive, so an equal address is the same memory.
    return all(
        new is old
        or (
            new.data_ptr() == old.data_ptr()
            and new.shape == old.shape
            and new.dtype == old.dtype
            and new.stride() == old.stride()
        )
        for new, old in zip(pair, known, strict=True)
    )


def _fold_open(work: Work, still_open: Flags, mean: Float32s, std: Float32s, dtype: str) -> None:
    if not still_open.any():
        return
    for tile in work.tiles:
        for chosen in np.flatnonzero(still_open[tile.cut.tokens]):
            piece = tile.pieces[int(chosen)].to(torch.float64).reshape(1, -1).numpy()
            token = tile.cut.token + chosen
            mean[token], std[token] = (value[0] for value in fold_moments(piece, dtype))


def _raise_non_finite(work: Work) -> None:
    for tile in work.tiles:
        if not np.isfinite(work.squares[tile.cut.tokens]).all():
            count = int((~torch.isfinite(tile.tensor)).sum())
            got = f"{count} of {tile.tensor.numel()} values"
            raise CheckpointError("non-finite weights", where=tile.cut.tensor_name, got=got)


def _check_range(work: Work, scales: Tensor) -> None:
    for tile in work.tiles:
        used = scales[tile.cut.tokens]
        finite = torch.isfinite(make_body(tile.target, used)).flatten(1).all(1) & torch.isfinite(used).all(1)
        if not bool(finite.all()):
            largest = LARGEST[str(tile.tensor.dtype).removeprefix("torch.")]
            raise CheckpointError(
                "weights spread too far for their dtype",
                where=f"{tile.cut.tensor_name}, piece {int(finite.to(torch.int8).argmin())}",
                expected=f"differences of at most {largest:.6g}",
            )
