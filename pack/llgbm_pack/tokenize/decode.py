"""From pieces, or from a body and its scales, back to LoRA matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import Layout, Module


def join_pieces(
    pieces: Tensor, layout: Layout, *, ranks: Mapping[str, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Restores the weights that were cut into these pieces, bit for bit.

    Args:
        pieces: (N, r, chunk), as a set stores them.
        layout: The layout of the set.
        ranks: Rank of each module, 0 (or not named) for an absent one.

    Returns:
        Canonical module name to (A (r_i, in), B (out, r_i)), contiguous, in layout order; absent modules left out.
    """
    pairs = {}
    for module in layout.modules:
        if rank := ranks.get(module.name, 0):
            end = module.first_token + module.tokens_a + module.tokens_b
            pairs[module.name] = _join(pieces[module.first_token : end, :rank], module)
    return pairs


def decode_body(
    body: Tensor,
    scales: Tensor,
    layout: Layout,
    *,
    ranks: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Restores the weights: ``body * std + mean``, joined, B transposed back, padding removed.

    Computed in float64 and rounded once to ``dtype``. A piece of zero std is its mean, whatever its body shows.

    Args:
        body: (N, r, chunk), normalised pieces; a tokens' inner part.
        scales: (N, 2) float32, the mean and std used; for a generator's tokens those of ``llgbm_loader.frame.unframe``.
        layout: The layout of the set.
        ranks: Rank of each module, 0 (or not named) for an absent one. By default told from the padding: rows that
            are NaN in all pieces of a module (constant pieces aside) are padding, a module of such rows is absent.
        dtype: dtype of the weights; the layout's by default.

    Returns:
        Canonical module name to (A (r_i, in), B (out, r_i)), contiguous, in layout order; absent modules left out.

    Raises:
        UsageError: Shapes disagree with the layout, or ``ranks`` with its rank.
    """
    expected = layout.pieces_shape
    if tuple(body.shape) != expected or tuple(scales.shape) != (expected[0], 2):
        got = f"{tuple(body.shape)} and {tuple(scales.shape)}"
        raise UsageError("body and scales do not fit the layout", expected=f"{expected} and (N, 2)", got=got)
    wanted = dtype or TORCH_DTYPE[layout.dtype]
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for module in layout.modules:
        tokens = slice(module.first_token, module.first_token + module.tokens_a + module.tokens_b)
        pieces, used = body[tokens], scales[tokens]
        rank = _rank_of(pieces, used) if ranks is None else ranks.get(module.name, 0)
        if not 0 <= rank <= layout.rank:
            raise UsageError(
                "rank is out of range", where=module.name, expected=f"0..{layout.rank}", got=f"{rank}"
            )
        if rank:
            pairs[module.name] = _decode_module(pieces[:, :rank], used, module, wanted)
    return pairs


def _decode_module(
    pieces: Tensor, scales: Tensor, module: Module, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    mean, std = scales.to(torch.float64)[..., None, None].unbind(1)
    weights = torch.where(std == 0, mean, pieces.to(torch.float64) * std + mean).to(dtype)
    return _join(weights, module)


def _join(pieces: Tensor, module: Module) -> tuple[Tensor, Tensor]:
    # (tokens, r, chunk) -> (r, tokens * chunk)
    side_a = pieces[: module.tokens_a].transpose(0, 1).flatten(1)[:, : module.in_features]
    side_b = pieces[module.tokens_a :].transpose(0, 1).flatten(1)[:, : module.out_features]
    return side_a.contiguous(), side_b.T.contiguous()


def _rank_of(pieces: Tensor, scales: Tensor) -> int:
    # Column 0 is real in every piece; a constant piece may be shown as NaN and then tells nothing.
    rows = (~pieces[..., 0].isnan()).sum(dim=1)
    telling = (scales[:, 1] != 0) | (rows > 0)
    if bool(telling.any()):
        return int(rows[telling].max())
    return pieces.shape[1] if bool((scales != 0).any()) else 0
