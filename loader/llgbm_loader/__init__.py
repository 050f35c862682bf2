"""The streaming loader of llgbm-pack: order, ranged reads, batches, frame, device.

The names are loaded when they are first used, so importing this package costs nothing beside torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llgbm_loader.dataset import ShardDataset
    from llgbm_loader.frame import frame_tokens
    from llgbm_loader.stream import StreamingLoader

__all__ = ["ShardDataset", "StreamingLoader", "frame_tokens"]

_HOME: Final = {"ShardDataset": "dataset", "StreamingLoader": "stream", "frame_tokens": "frame"}


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
