"""Zoos of empty adapters, and what a walk through them lists."""

from __future__ import annotations

from pathlib import Path

from llgbm_pack.sources.zoo import ZooListing

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapter(folder: Path, content: str = "weights", config: str | None = "{}") -> Path:
    """A folder that looks like an adapter; nothing in it can be read as one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_text(content)
    if config is not None:
        (folder / CONFIG).write_text(config)
    return folder


def paths(listing: ZooListing) -> list[str]:
    """Of the checkpoints."""
    return [one.path for one in listing.checkpoints]


def faults(listing: ZooListing) -> dict[str, str]:
    """Path -> reason of each that is refused for a fault."""
    return {one.path: one.reason for one in listing.rejected if one.fault}
