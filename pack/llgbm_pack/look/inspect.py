"""Look into a set: a summary, or one sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any, Final

from llgbm_shards.check_parity import parity_entries
from llgbm_shards.members import SUFFIX
from llgbm_shards.parity import parity_groups
from llgbm_shards.sample import Sample
from llgbm_shards.shardset import ShardSet

_SHOWN_KEYS: Final = 5


def describe_set(path: str) -> dict[str, Any]:
    """Summary of a set."""
    shard_set = ShardSet(path)
    index = shard_set.index(["key", "split", "task", "base_model", "has_delta"])
    layout = shard_set.layout
    return {
        "path": path,
        "digest": shard_set.digest,
        "base": shard_set.record.base,
        "samples": len(shard_set),
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
        "members": list(shard_set.record.members),
        "forms": list(shard_set.record.texts["forms"]),
        "tasks": _count(index, "task"),
        "base_models": _count(index, "base_model"),
        "shards": len(shard_set.record.shards),
        "bytes": sum(shard.size for shard in shard_set.record.shards),
        "parity": {
            "groups": parity_groups(shard_set.record),
            "bytes": sum(entry.size for entry in parity_entries(shard_set.record)),
        },
        "options": shard_set.record.options,
        "keys": shard_set.keys[:_SHOWN_KEYS],
    }


def describe_sample(path: str, key: str) -> dict[str, Any]:
    """One sample: where it stands, its members, its json, and the shapes of its tensors."""
    shard_set = ShardSet(path)
    number = shard_set.number(key)
    row = shard_set.index(["split"]).slice(number, 1).to_pylist()[0]
    extents = shard_set.extents(number)
    sample = shard_set.read_sample(number)
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
    values = {field.name: getattr(sample, field.name) for field in fields(sample)}
    shapes = {name: str(tuple(value.shape)) for name, value in values.items() if hasattr(value, "shape")}
    texts = (sample.texts or {}).items()
    return shapes | {f"{form}.ids": f"({len(ids)},) in {len(ends) - 1} texts" for form, (ids, ends) in texts}


def _count(index: Any, column: str) -> dict[str, int]:
    return dict(sorted(Counter(index.column(column).to_pylist()).items()))
