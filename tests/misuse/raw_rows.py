"""Wrong uses of ``llgbm_pack.raw``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llgbm_pack import LoraTokenizer2D
from llgbm_pack.raw import (
    DeltaAugmentedDataset,
    DnDDatasetWithDelta,
    Text2Qwen25LoRA_DeltaDataset,
    create_dataloader,
    wrap_dnd_dataset,
)
from misuse.rows import ENDLESS, HUGE, NO_BOOLS, NO_COUNTS, NO_PATHS, BytesPath, Row, World, each, keywords

_NO_CACHES = (None, 3, b"x", "a\0b", "a\ud800b", [], {})
_NO_INDICES = (None, 0.0, True, "0", b"x", [0], np.float64(0))
_NO_BASES = (None, 3, iter([]), object())


class _NoDict:
    def get_all_deltas(self) -> list[int]:
        return [3]


_SHARED: dict[str, Any] = {
    "checkpoint_folder": (*NO_PATHS, BytesPath(), "/no/such/zoo"),
    "lora_tokenizer": (None, 3, "DnD", object()),
    "text_tokenizer": (None, 3, "gpt2", object()),
    "delta_cache": (*_NO_CACHES, _NoDict()),
    "max_text_length": NO_COUNTS,
    "condition_type": (None, 3, "question", ["prompt"], np.array(["prompt", "answer"])),
    "require_delta": NO_BOOLS,
    "texts": (*NO_PATHS[1:], BytesPath()),
    "joiner": (None, 3, b"x", "\ud800"),
    "view": (3, "tokens", "", ["pieces"], np.array(["pieces"])),
    "maps": (None, 3, "a=b", ["a=b"], [("a",)], [(1, 2)], [None]),
}


def _zoo(world: World, wrong: dict[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint_folder": world.root / "zoo",
        "lora_tokenizer": LoraTokenizer2D(),
        "text_tokenizer": world.text_tokenizer,
        "delta_cache": world.root / "deltas",
        **wrong,
    }


def _dataset(world: World, **wrong: Any) -> Any:
    return Text2Qwen25LoRA_DeltaDataset(**_zoo(world, wrong))


def _dataloader(world: World, **wrong: Any) -> Any:
    return create_dataloader(**_zoo(world, wrong))


def _augmented(world: World, **wrong: Any) -> Any:
    return DeltaAugmentedDataset(**{"base_dataset": world.raw, "delta_cache": world.root / "deltas", **wrong})


def _wrapped(world: World, **wrong: Any) -> Any:
    return DnDDatasetWithDelta(
        **{"base_dataset": world.raw, "delta_cache_dir": world.root / "deltas", **wrong}
    )


def _wrap(world: World, **wrong: Any) -> Any:
    return wrap_dnd_dataset(
        **{"dataset_class": lambda: world.raw, "delta_cache_dir": world.root / "deltas", **wrong}
    )


_NO_BATCHES = (None, 3, [], (), "", [None], [3], torch.ones(2))

ROWS: list[Row] = [
    *keywords("Text2Qwen25LoRA_DeltaDataset", _SHARED, _dataset),
    *keywords(
        "create_dataloader",
        {
            **_SHARED,
            "batch_size": NO_COUNTS,
            "num_workers": (None, -1, 1.5, True, "1", HUGE, ENDLESS, 1025),
            "shuffle": NO_BOOLS,
        },
        _dataloader,
    ),
    *keywords(
        "DeltaAugmentedDataset",
        {"base_dataset": _NO_BASES, "delta_cache": _NO_CACHES, "require_delta": NO_BOOLS},
        _augmented,
    ),
    *keywords(
        "DnDDatasetWithDelta",
        {
            "base_dataset": _NO_BASES,
            "delta_cache_dir": _NO_CACHES,
            "fallback_delta_norm": (None, 1.0, "0", True, float("nan"), np.array([0.0, 0.0])),
        },
        _wrapped,
    ),
    *keywords(
        "wrap_dnd_dataset",
        {"dataset_class": (None, 3, "DnD", lambda: None), "delta_cache_dir": _NO_CACHES},
        _wrap,
    ),
    *[
        row
        for name, of in (
            ("Text2Qwen25LoRA_DeltaDataset", lambda w: w.raw),
            ("DeltaAugmentedDataset", lambda w: w.augmented),
            ("DnDDatasetWithDelta", lambda w: w.wrapped),
        )
        for row in (
            *each(f"{name}.__getitem__", "idx", _NO_INDICES, lambda w, v, of=of: of(w)[v]),
            *each(f"{name}.has_delta", "idx", _NO_INDICES, lambda w, v, of=of: of(w).has_delta(v)),
            *each(
                f"{name}.get_checkpoint_path",
                "idx",
                _NO_INDICES,
                lambda w, v, of=of: of(w).get_checkpoint_path(v),
            ),
            *each(f"{name}.collate_fn", "batch", _NO_BATCHES, lambda w, v, of=of: of(w).collate_fn(v)),
        )
    ],
    *each(
        "DnDDatasetWithDelta.collate_fn_train",
        "batch",
        _NO_BATCHES,
        lambda w, v: w.wrapped.collate_fn_train(v),
    ),
]
