"""What a sample's json says of its checkpoint, and the index columns taken from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.plan.values import PlannedSample
from llgbm_pack.sources.adapter import Adapter
from llgbm_pack.sources.texts import CheckpointTexts, Text
from llgbm_pack.sources.weights_file import Source
from llgbm_shards.layout import Layout
from llgbm_shards.npy import vector_norm

#: What a sample's json says of its delta as the delta's manifest does.
_OF_DELTA: Final = ("base_model", "probes", "layer", "dtype")


def describe(
    planned: PlannedSample,
    adapter: Adapter,
    source: Source,
    texts: tuple[Text, ...],
    read: CheckpointTexts,
    delta: NDArray[np.float32],
    layout: Layout,
) -> dict[str, Any]:
    """The json member less its own list of members; every sample has the same keys and types."""
    return {
        **describe_adapter(adapter, layout),
        "checkpoint": planned.path,
        "task": planned.task,
        "base_model": planned.base_model,
        "weights_file": planned.weights.name,
        "text_source": read.source,
        "prompts_task": read.task,
        "source_digest": source.digest,
        "exact": adapter.dtype == layout.dtype,
        "texts": describe_texts(texts),
        **describe_delta(planned, delta),
    }


def describe_delta(planned: PlannedSample, delta: NDArray[np.float32]) -> dict[str, Any]:
    """Whether there is a delta, and where it comes from."""
    joined = planned.delta
    return {
        "has_delta": joined is not None,
        "delta": {
            "file": joined.file.name if joined else "",
            "norm": vector_norm(delta) if joined else 0.0,
            "matched_by": _recorded_match(planned),
            **{name: getattr(joined, name) if joined else "" for name in _OF_DELTA},
        },
    }


def describe_texts(texts: Iterable[Text]) -> list[dict[str, str]]:
    """The texts, in file order."""
    return [{"prompt": text.prompt, "answer": text.answer} for text in texts]


def describe_adapter(adapter: Adapter, layout: Layout) -> dict[str, Any]:
    """What headers and config alone tell."""
    return {
        "base_model": adapter.base_model,
        "rank": adapter.rank,
        "alpha": float(adapter.alpha),
        "scaling": float(adapter.scaling),
        "lora_dropout": adapter.dropout,
        "task_type": adapter.task_type,
        "modules": [_module(adapter, module.name) for module in layout.modules],
        "source_dtype": adapter.dtype,
    }


def _recorded_match(planned: PlannedSample) -> str:
    """``path``, ``tail`` or ``name``: unlike the report's words these do not depend on where the zoo lies."""
    if planned.delta is None:
        return ""
    tail = PurePosixPath(planned.path).parts
    whole = PurePosixPath(planned.delta.path).parts[-len(tail) :] == tail
    return "path" if whole or planned.matched_by in ("exact", "relative") else planned.matched_by


def _module(adapter: Adapter, name: str) -> dict[str, Any]:
    pair = adapter.pairs.get(name)
    if pair is None:
        return {"name": name, "rank": 0, "scaling": 0.0}
    return {"name": name, "rank": pair.rank, "scaling": float(pair.scaling)}


def columns(info: dict[str, Any]) -> dict[str, Any]:
    """The query columns of the index row."""
    names = ("checkpoint", "task", "base_model", "rank", "has_delta")
    return {**{name: info[name] for name in names}, "delta_norm": info["delta"]["norm"]}
