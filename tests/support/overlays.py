"""A zoo with two delta caches and two text tokenizers: a base of the old ones, an overlay and a fresh set of the new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llgbm_pack import PackOptions, build
from llgbm_pack.packing.overlay import OverlayReport, overlay
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_shards import ShardSet
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import write_deltas, write_zoo

COUNT = 9
NEW_WIDTH = 30
FORMS = ("prompt", "prompt_answer")


def write_sources(root: Path) -> Path:
    """zoo, old, new (deltas), bert, qwen2 (tokenizers)."""
    paths = write_zoo(root / "zoo", COUNT)
    write_deltas(root / "old", paths)
    write_deltas(root / "new", paths, width=NEW_WIDTH)
    for kind in ("bert", "qwen2"):
        save_tiny(kind, root / kind)
    return root


def build_set(root: Path, name: str, deltas: str | None, tokenizer: str | None, **more: Any) -> ShardSet:
    """A set of ``root/zoo``; three samples to a shard, two splits."""
    common = {"shard_bytes": 5000, "split": 0.4, "workers": 1, "overwrite": True}
    named = {
        "deltas": root / deltas if deltas else None,
        "text_tokenizer": str(root / tokenizer) if tokenizer else None,
    }
    build(PackOptions(zoo=root / "zoo", out=root / name, **{**common, **named, **more}))
    return ShardSet(root / name)


def lay(root: Path, name: str = "over", **options: Any) -> OverlayReport:
    """An overlay ``root/name`` of ``root/base``."""
    return overlay(OverlayOptions(base=root / "base", out=root / name, **options))


def new(root: Path) -> dict[str, Any]:
    """Options for the newer deltas and texts."""
    return {"deltas": root / "new", "text_tokenizer": str(root / "qwen2"), "forms": FORMS}


def members_of(opened: ShardSet) -> dict[str, dict[str, Any]]:
    """Key -> field -> bytes; of the json what it says but for its list of members."""
    found = {}
    for number, key in enumerate(opened.keys):
        data: dict[str, Any] = {one.field: opened.read_member(one) for one in opened.extents(number)}
        data["json"] = {name: value for name, value in json.loads(data["json"]).items() if name != "members"}
        found[key] = data
    return found
