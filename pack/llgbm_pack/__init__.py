"""llgbm-pack: from a zoo of LoRA checkpoints to a shard set. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llgbm_pack.deltas.cache import DeltaCache
    from llgbm_pack.look.write_adapter import write_adapter
    from llgbm_pack.packing.build import build
    from llgbm_pack.packing.report import PackReport
    from llgbm_pack.plan.options import PackOptions
    from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D

__all__ = ["DeltaCache", "LoraTokenizer2D", "PackOptions", "PackReport", "build", "write_adapter"]

_HOMES = {
    "DeltaCache": "deltas.cache",
    "LoraTokenizer2D": "tokenize.lora_tokenizer",
    "PackOptions": "plan.options",
    "PackReport": "packing.report",
    "build": "packing.build",
    "write_adapter": "look.write_adapter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
