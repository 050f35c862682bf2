"""The shard format of llgbm-pack: tar profile, sample codec, index, commit record, check.

Imports neither torch nor click nor transformers; bfloat16 is uint16 bits here. Names are imported when they are
first used, so that a program that needs only the errors does not wait for pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llgbm_shards.check_set import check
    from llgbm_shards.errors import (
        CheckpointError,
        DamageError,
        DiskFullError,
        HeaderError,
        LlgbmError,
        LockedError,
        PlanError,
        RepairError,
        StorageError,
        UsageError,
    )
    from llgbm_shards.findings import CheckReport, Finding
    from llgbm_shards.layout import Layout, Module
    from llgbm_shards.sample import Sample
    from llgbm_shards.shardset import ShardSet

__all__ = [
    "CheckReport",
    "CheckpointError",
    "DamageError",
    "DiskFullError",
    "Finding",
    "HeaderError",
    "Layout",
    "LlgbmError",
    "LockedError",
    "Module",
    "PlanError",
    "RepairError",
    "Sample",
    "ShardSet",
    "StorageError",
    "UsageError",
    "check",
]

_HOMES = {
    "check": "check_set",
    "CheckReport": "findings",
    "Finding": "findings",
    "Layout": "layout",
    "Module": "layout",
    "Sample": "sample",
    "ShardSet": "shardset",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
