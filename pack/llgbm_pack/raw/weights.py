"""The weights of one checkpoint through a LoRA tokenizer, ours or a foreign one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from llgbm_loader.frame import frame_tokens
from llgbm_pack.raw.values import token_tensors
from llgbm_pack.sources.peft_keys import pair_keys
from llgbm_pack.tokenize.encode import BodyEncoder
from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D
from llgbm_shards.errors import CheckpointError
from llgbm_shards.layout import Layout
from llgbm_shards.storage import read_file


def own_tokenizer(lora_tokenizer: object) -> LoraTokenizer2D | None:
    """The tokenizer when it is ours and cuts as ours does, else None."""
    if isinstance(lora_tokenizer, LoraTokenizer2D):
        return lora_tokenizer if type(lora_tokenizer).tokenize is LoraTokenizer2D.tokenize else None
    return None


def tokenize_file(
    weights: Path, lora_tokenizer: Any, layout: Layout | None, *, where: str
) -> tuple[Tensor, Tensor | None]:
    """Read a weights file and tokenize it.

    Args:
        weights: A safetensors file.
        lora_tokenizer: What cuts it; it gets tensors by sorted key, which it may keep.
        layout: For our own tokenizer, the layout that the zoo shares: absent modules become padding, as in a set.
        where: The checkpoint, for messages.

    Returns:
        tokens (N, H, W) float32 and scales, (N, 2) float32 from ours; from others (N, 2), (N, 4) or None.

    Raises:
        CheckpointError: The file is unsound, or holds what cannot be tokenized.
        StorageError: It cannot be read.
        UsageError: A foreign tokenizer returned something else.
    """
    tensors = read_tensors(weights, where=where)
    own = own_tokenizer(lora_tokenizer)
    if own is None or layout is None:
        return token_tensors(lora_tokenizer.tokenize(tensors))
    try:
        return tokenize_to(layout, own, tensors, weights.name)
    except CheckpointError as error:
        place = f"{where}: {error.where}" if error.where else where
        raise CheckpointError(
            error.what, where=place, expected=error.expected, got=error.got, do=error.do
        ) from error


def read_tensors(weights: Path, *, where: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file by sorted key, in memory of their own.

    Raises:
        CheckpointError: It is not sound.
        StorageError: It cannot be read, or is no regular file.
    """
    try:
        tensors = load(read_file(weights))
    except SafetensorError as error:
        raise CheckpointError(
            "not a sound safetensors file", where=f"{where}: {weights.name}", got=str(error)
        ) from error
    return {key: tensors[key] for key in sorted(tensors)}


def tokenize_to(
    layout: Layout, tokenizer: LoraTokenizer2D, tensors: Mapping[str, Tensor], where: str
) -> tuple[Tensor, Tensor]:
    """Tokenize weights to a given layout, as a build does.

    Args:
        layout: The layout; modules that the weights lack become padding.
        tokenizer: Says how to frame.
        tensors: PEFT keys to tensors of the layout's dtype.
        where: Name of the file, for messages.

    Returns:
        tokens (N, H, W) float32 and scales (N, 2) float32.

    Raises:
        CheckpointError: A tensor does not fit the layout or cannot be tokenized; it is named.
    """
    keys = pair_keys(tensors, where)
    pairs = {name: (tensors[pair.a], tensors[pair.b]) for name, pair in keys.items()}
    body = torch.empty(layout.body_shape, dtype=getattr(torch, layout.dtype))
    scales = torch.empty(layout.num_tokens, 2)
    BodyEncoder(layout).encode(pairs, body, scales)
    tokens = frame_tokens(
        body, scales, frame=tokenizer.frame, zero_std=tokenizer.zero_std, dtype=torch.float32
    )
    return tokens, scales
