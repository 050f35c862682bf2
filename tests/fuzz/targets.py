"""What is fuzzed: every parser of bytes that somebody else may have written.

A target takes bytes and returns, or raises an LlgbmError; anything else that happens is a finding. Nothing of ours is
imported before a target runs, so that the fuzzer can instrument it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fuzz import pack_targets, set_targets

Parse = Callable[[bytes], object]
MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser under fuzz.

    Attributes:
        run: The parser.
        seeds: Names of the seeds it starts from, see ``fuzz.seeds``.
        json: Whether its input is JSON, which is then changed as JSON.
        growth: Bytes by which an input of a few KiB may raise the peak of memory.
    """

    run: Parse
    seeds: tuple[str, ...]
    json: bool = False
    growth: int = 48 * MIB


TARGETS: Final[Mapping[str, Target]] = {
    "tar": Target(run=set_targets.tar, seeds=("tar",)),
    "tar without an index": Target(run=set_targets.recover, seeds=("tar",)),
    "safetensors": Target(run=set_targets.safetensors, seeds=("weights", "texts", "pieces", "source")),
    "texts member": Target(run=set_targets.texts_member, seeds=("texts",)),
    "npy": Target(run=set_targets.npy, seeds=("npy", "npy-2", "npy-fortran", "npy-objects")),
    "json": Target(run=set_targets.strict_json, seeds=("record", "sample", "config", "prompts"), json=True),
    "record": Target(run=set_targets.record, seeds=("record",)),
    "sealed record": Target(run=set_targets.sealed_record, seeds=("record",), json=True),
    # What parquet itself unpacks is bounded by its rows only.
    "index": Target(run=set_targets.index, seeds=("index", "index-about"), growth=256 * MIB),
    "index rows": Target(run=set_targets.index_rows, seeds=("rows",), json=True),
    "sample's json": Target(run=set_targets.sample_json, seeds=("sample",), json=True),
    "sample's arrays": Target(
        run=set_targets.sample_arrays,
        seeds=("member-scales", "member-texts", "member-delta", "member-source"),
    ),
    "adapter": Target(run=pack_targets.adapter, seeds=("weights-header",), json=True),
    "adapter config": Target(run=pack_targets.adapter_config, seeds=("config", "config-patterns"), json=True),
    "pattern": Target(run=pack_targets.pattern, seeds=("pattern",)),
    "delta": Target(run=pack_targets.delta, seeds=("npy", "npy-2", "npy-fortran", "npy-objects")),
    "delta manifest": Target(run=pack_targets.delta_manifest, seeds=("manifest",), json=True),
    "named delta manifest": Target(
        run=pack_targets.named_delta_manifest, seeds=("named-manifest",), json=True
    ),
    "texts": Target(
        run=pack_targets.texts, seeds=("prompts", "texts-list", "texts-dnd", "texts-sharegpt"), json=True
    ),
    "zoo manifest": Target(run=pack_targets.zoo_manifest, seeds=("tasks", "tasks-list"), json=True),
    "shard record": Target(run=pack_targets.shard_record, seeds=("shard-record",), json=True),
    "plan": Target(run=pack_targets.plan, seeds=("plan",), json=True),
    "lock": Target(run=pack_targets.lock, seeds=("lock",), json=True),
    "skipped list": Target(run=pack_targets.skipped_list, seeds=("skipped",), json=True),
    "loader's state": Target(run=set_targets.loader_state, seeds=("state",), json=True),
    "credentials": Target(run=set_targets.credentials, seeds=("urls",)),
}
