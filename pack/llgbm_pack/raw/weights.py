"""The weights of one checkpoint through a LoRA tokenizer, ours or a foreign one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from llgbm_loader.collate import ByName, join_samples
from llgbm_loader.frame import unframe
from llgbm_loader.views import VIEWS, WeightView
from llgbm_loader.weights import WeightPlan
from llgbm_pack.raw.values import as_tensor, common_keys, stack
from llgbm_pack.sources.peft_keys import pair_keys
from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D, cut_pairs, frame_pieces
from llgbm_shards.arguments import is_one_of, require
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.storage import read_file

#: Rows and columns of a frame.
_BORDER = 2
#: Fields of an item that are no tensors, but tensors in the form of a view.
WEIGHT_FIELDS = ("weights", "ranks")
#: Where a fault of a foreign tokenizer is, for messages.
_TOKENIZE = "lora_tokenizer.tokenize"


def own_tokenizer(lora_tokenizer: object) -> LoraTokenizer2D | None:
    """The tokenizer when it is ours and cuts as ours does, else None."""
    if isinstance(lora_tokenizer, LoraTokenizer2D):
        return lora_tokenizer if type(lora_tokenizer).tokenize is LoraTokenizer2D.tokenize else None
    return None


def checked_view(view: Any, lora_tokenizer: object) -> str | None:
    """The view of the field ``weights``, or None. A foreign tokenizer makes no pieces to view: refused."""
    require(view is None or is_one_of(view, VIEWS), "view", "None or one of " + ", ".join(VIEWS), view)
    if view is not None and own_tokenizer(lora_tokenizer) is None:
        raise UsageError(
            "weights are views of the pieces that our tokenizer cuts",
            where="view",
            expected="None with a LoRA tokenizer of another kind",
            got=view,
            do="Give a LoraTokenizer2D, or pack the zoo and read weights from the set.",
        )
    return None if view is None else str(view)


def weight_plan(view: str | None, layout: Layout | None) -> WeightPlan | None:
    """How the field ``weights`` is made of pieces, float32; None where it is not wanted, or no checkpoint fits."""
    return None if view is None or layout is None else WeightPlan(WeightView(layout, view), torch.float32)


def tokenize_file(
    weights: Path, lora_tokenizer: Any, layout: Layout | None, plan: WeightPlan | None, *, where: str
) -> dict[str, Any]:
    """Read a safetensors file and tokenize it: the fields of an item that are made of weights.

    These are tokens (N, H, W) float32; scales, (N, 2) float32 from our tokenizer, from others (N, 2), (N, 4) or none;
    with a ``plan`` weights and ranks in its view. Our own cuts to the ``layout`` that the zoo shares: absent modules
    become padding, as in a set. A foreign one gets tensors by sorted key, which it may keep. ``where`` names the
    checkpoint in messages.
    """
    tensors = _read_tensors(weights, where)
    own = own_tokenizer(lora_tokenizer)
    if own is None or layout is None:
        tokens, scales = token_tensors(lora_tokenizer.tokenize(tensors))
        return {"tokens": tokens} if scales is None else {"tokens": tokens, "scales": scales}
    try:
        return _own_fields(layout, own, plan, tensors, weights.name)
    except CheckpointError as error:
        raise error.as_(CheckpointError, where=f"{where}: {error.where}" if error.where else where) from error


def collate_weights(values: Sequence[Any], where: str) -> Any:
    """Weights or ranks of the items of a batch, stacked in the form of their view: a tensor, or a map by name."""
    if any(type(value) is not type(values[0]) for value in values):
        raise UsageError("items of different views in one batch", where=where)
    if isinstance(values[0], ByName):
        common_keys(values, where)
        return join_samples(values)
    return stack(values, where)


def _read_tensors(weights: Path, where: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file by sorted key, in memory of their own."""
    try:
        tensors = load(read_file(weights))
    except SafetensorError as error:
        raise CheckpointError(
            "not a sound safetensors file", where=f"{where}: {weights.name}", got=str(error)
        ) from error
    return {key: tensors[key] for key in sorted(tensors)}


def _own_fields(
    layout: Layout,
    tokenizer: LoraTokenizer2D,
    plan: WeightPlan | None,
    tensors: Mapping[str, Tensor],
    where: str,
) -> dict[str, Any]:
    """Cut weights to a given layout, as a build does; modules that they lack become padding."""
    keys = pair_keys(tensors, where)
    pairs = {name: (tensors[pair.a], tensors[pair.b]) for name, pair in keys.items()}
    pieces, scales = cut_pairs(pairs, layout)
    weights = {} if plan is None else _weights(plan, pieces)
    tokens = frame_pieces(pieces, scales, layout, frame=tokenizer.frame, zero_std=tokenizer.zero_std)
    return {"tokens": tokens, "scales": scales, **weights}


def _weights(plan: WeightPlan, pieces: Tensor) -> dict[str, Any]:
    """The fields ``weights`` and ``ranks`` of one checkpoint's pieces (N, r, chunk), which keep their memory."""
    weights, ranks = plan.make(pieces[None], torch.ones(1, dtype=torch.bool))
    fields = plan.view.present(weights[0].clone() if plan.in_place else weights[0], ranks[0])
    return {name: ByName(value) if isinstance(value, dict) else value for name, value in fields.items()}


def token_tensors(result: object) -> tuple[Tensor, Tensor | None]:
    """Tokens (N, H, W) and scales (N, 2) or (N, 4), float32, of what a LoRA tokenizer's ``tokenize`` returned.

    That is (tokens, scales), or tokens alone; tensors or arrays. Where no scales are given they are those of the
    tokens' frame, None where they have no frame either.
    """
    parts = tuple(result) if isinstance(result, (tuple, list)) else (result, None)
    if len(parts) != 2:
        raise UsageError("not tokens and scales", where=_TOKENIZE, got=f"{len(parts)} values")
    tokens = as_tensor(parts[0], "tokens of lora_tokenizer").float()
    if tokens.ndim != 3:
        got = f"{tuple(tokens.shape)}"
        raise UsageError("tokens of another shape", where=_TOKENIZE, expected="(N, H, W)", got=got)
    if parts[1] is None:
        return tokens, scales_in_frame(tokens)
    scales = as_tensor(parts[1], "scales of lora_tokenizer").float()
    if scales.ndim != 2 or len(scales) != len(tokens):
        expected, got = f"({len(tokens)}, 2) or ({len(tokens)}, 4)", f"{tuple(scales.shape)}"
        raise UsageError("scales of another shape", where=_TOKENIZE, expected=expected, got=got)
    return tokens, scales


def scales_in_frame(tokens: Tensor) -> Tensor | None:
    """The scales that tokens (N, H, W) float32 carry, None when they have no frame.

    They are (N, 2) float32, mean and std; (0, 0) where a frame is NaN. A frame holds each code of a token many times:
    only tokens whose copies are all equal have one. Padding of one value all round is none.
    """
    if min(tokens.shape) == 0 or min(tokens.shape[-2:]) <= _BORDER:
        return None
    mean_code, std_code = tokens[:, 0, -2], tokens[:, 0, -1]
    copies = (
        _are(tokens[..., -2], mean_code[:, None]),
        _are(tokens[..., -1], std_code[:, None]),
        _are(tokens[:, -2:, 0:-2:2], mean_code[:, None, None]),
        _are(tokens[:, -2:, 1:-2:2], std_code[:, None, None]),
    )
    # Where mean and std have one code in every token, the border is padding of one value.
    told = mean_code.isfinite() & std_code.isfinite() & (mean_code != std_code)
    return unframe(tokens)[1] if all(copies) and bool(told.any()) else None


def _are(copies: Tensor, code: Tensor) -> bool:
    return bool(((copies == code) | (copies.isnan() & code.isnan())).all())
