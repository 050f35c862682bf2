"""Look into a set: a summary, or one sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any, Final

from llgbm_shards.members import SUFFIX
from llgbm_shards.sample import Sample
from llgbm_shards.shardset import ShardSet

_SHOWN_KEYS: Final = 5


def describe_set(path: str) -> dict[str, Any]:
    """Summary of a set.

    Raises:
        DamageError: The record or the index is damaged.
    """
    opened = ShardSet(path)
    index = opened.index(["key", "split", "task", "base_model", "has_delta"])
    layout = opened.layout
    return {
        "path": path,
        "digest": opened.digest,
        "samples": len(opened),
        "splits": _count(index, "split"),
        "with_delta": sum(index.column("has_delta").to_pylist()),
        "tokens": {
            "count": layout.num_tokens,
            "rank": layout.rank,
            "chunk": layout.chunk,
            "dtype": layout.dtype,
            "order": layout.token_order,
            "modules": len(layout.modules),
        },
        "members": list(opened.record.members),
        "forms": list(opened.record.texts["forms"]),
        "tasks": _count(index, "task"),
        "base_models": _count(index, "base_model"),
        "shards": len(opened.record.shards),
        "bytes": sum(shard.size for shard in opened.record.shards),
        "options": opened.record.options,
        "keys": opened.keys[:_SHOWN_KEYS],
    }


def describe_sample(path: str, key: str) -> dict[str, Any]:
    """One sample: where it stands, its members, its json, and the shapes of its tensors.

    Raises:
        UsageError: No such key.
        DamageError: A member is damaged.
    """
    opened = ShardSet(path)
    number = opened.number(key)
    row = opened.index(["split"]).slice(number, 1).to_pylist()[0]
    extents = opened.extents(number)
    sample = opened.read_sample(number)
    return {
        "key": key,
        "shard": extents[0].shard,
        "offset": extents[0].offset,
        "split": row["split"],
        "members": [
            {"name": SUFFIX[extent.field], "size": extent.size, "digest": extent.blake3} for extent in extents
        ],
        "shapes": _shapes(sample),
        "json": sample.json,
    }


def _shapes(sample: Sample) -> dict[str, str]:
    shapes = {}
    for field in fields(sample):
        value = getattr(sample, field.name)
        if hasattr(value, "shape"):
            shapes[field.name] = str(tuple(value.shape))
    for form, (ids, offsets) in (sample.texts or {}).items():
        shapes[f"{form}.ids"] = f"({len(ids)},) in {len(offsets) - 1} texts"
    return shapes


def _count(index: Any, column: str) -> dict[str, int]:
    return dict(sorted(Counter(index.column(column).to_pylist()).items()))
