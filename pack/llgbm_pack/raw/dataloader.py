"""create_dataloader: batches straight from a raw zoo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from llgbm_pack.raw.dataset import Text2Qwen25LoRA_DeltaDataset
from llgbm_pack.raw.deltas import Maps
from llgbm_shards.arguments import MOST_COUNT, MOST_WORKERS, require, whole_number
from llgbm_shards.errors import UsageError


def create_dataloader(
    checkpoint_folder: str | os.PathLike[str],
    lora_tokenizer: Any,
    text_tokenizer: Any,
    delta_cache: Any,
    batch_size: int = 8,
    num_workers: int = 4,
    shuffle: bool = True,
    condition_type: str = "prompt",
    max_text_length: int = 512,
    *,
    require_delta: bool = True,
    texts: str | os.PathLike[str] | None = None,
    joiner: str = "\n",
    maps: Maps = (),
    columns: Sequence[str] = (),
    view: str | None = None,
) -> DataLoader[dict[str, Any]]:
    """A DataLoader over :class:`Text2Qwen25LoRA_DeltaDataset`, whose other arguments it takes.

    Args:
        checkpoint_folder: The zoo.
        lora_tokenizer: Tokenizer of LoRA weights.
        text_tokenizer: Tokenizer of texts.
        delta_cache: The deltas.
        batch_size: Rows of a batch.
        num_workers: Worker processes, 0 to 1,024.
        shuffle: Whether to shuffle.
        condition_type: ``prompt`` or ``prompt_answer``.
        max_text_length: Ids of a condition.
        require_delta: See the dataset.
        texts: See the dataset.
        joiner: See the dataset.
        maps: See the dataset.
        columns: See the dataset.
        view: See the dataset.

    Returns:
        A loader of batches: tokens (B, N, H, W) and scales (B, N, 2) float32, condition_ids and attention_mask (B, L)
        int64, delta (B, hidden) float32, has_delta (B,) bool; with a view weights and ranks as ``StreamingLoader`` has
        them; the columns, lists of str. Memory is pinned where there is a CUDA device.

    Raises:
        UsageError: As the dataset; or no checkpoint can be used, and why not.
        StorageError: As the dataset.
    """
    rows = whole_number("batch_size", batch_size, 1, MOST_COUNT)
    workers = whole_number("num_workers", num_workers, 0, MOST_WORKERS)
    require(isinstance(shuffle, bool), "shuffle", "True or False", shuffle)
    dataset = Text2Qwen25LoRA_DeltaDataset(
        checkpoint_folder,
        lora_tokenizer,
        text_tokenizer,
        delta_cache,
        max_text_length,
        condition_type,
        require_delta=require_delta,
        texts=texts,
        joiner=joiner,
        maps=maps,
        columns=columns,
        view=view,
    )
    if not len(dataset):
        reasons = "; ".join(f"{skip.checkpoint}: {skip.reason}" for skip in dataset.skipped)
        where = str(checkpoint_folder)
        raise UsageError("no checkpoint can be used", where=where, got=reasons or "none found")
    return DataLoader(
        dataset,
        batch_size=rows,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=dataset.collate_fn,
        pin_memory=torch.cuda.is_available(),
    )
