"""The weights of one checkpoint through a LoRA tokenizer, ours or a foreign one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from llgbm_loader.frame import unframe
from llgbm_pack.raw.values import as_tensor
from llgbm_pack.sources.peft_keys import pair_keys
from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D, tokenize_pairs
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.storage import read_file

#: Rows and columns of a frame.
_BORDER = 2
#: Where a fault of a foreign tokenizer is, for messages.
_TOKENIZE = "lora_tokenizer.tokenize"


def own_tokenizer(lora_tokenizer: object) -> LoraTokenizer2D | None:
    """The tokenizer when it is ours and cuts as ours does, else None."""
    if isinstance(lora_tokenizer, LoraTokenizer2D):
        return lora_tokenizer if type(lora_tokenizer).tokenize is LoraTokenizer2D.tokenize else None
    return None


def tokenize_file(
    weights: Path, lora_tokenizer: Any, layout: Layout | None, *, where: str
) -> tuple[Tensor, Tensor | None]:
    """Read a safetensors file and tokenize it: tokens (N, H, W) float32 and scales.

    Scales are (N, 2) float32 from our tokenizer; from others (N, 2), (N, 4) or None. Our own cuts to the ``layout`` that
    the zoo shares: absent modules become padding, as in a set. A foreign one gets tensors by sorted key, which it may
    keep. ``where`` names the checkpoint in messages.
    """
    tensors = _read_tensors(weights, where)
    own = own_tokenizer(lora_tokenizer)
    if own is None or layout is None:
        return token_tensors(lora_tokenizer.tokenize(tensors))
    try:
        return _tokenize_to(layout, own, tensors, weights.name)
    except CheckpointError as error:
        raise error.as_(CheckpointError, where=f"{where}: {error.where}" if error.where else where) from error


def _read_tensors(weights: Path, where: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file by sorted key, in memory of their own."""
    try:
        tensors = load(read_file(weights))
    except SafetensorError as error:
        raise CheckpointError(
            "not a sound safetensors file", where=f"{where}: {weights.name}", got=str(error)
        ) from error
    return {key: tensors[key] for key in sorted(tensors)}


def _tokenize_to(
    layout: Layout, tokenizer: LoraTokenizer2D, tensors: Mapping[str, Tensor], where: str
) -> tuple[Tensor, Tensor]:
    """Tokenize weights to a given layout, as a build does; modules that they lack become padding."""
    keys = pair_keys(tensors, where)
    pairs = {name: (tensors[pair.a], tensors[pair.b]) for name, pair in keys.items()}
    return tokenize_pairs(pairs, layout, frame=tokenizer.frame, zero_std=tokenizer.zero_std)


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
