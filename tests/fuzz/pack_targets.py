"""Targets that read a zoo, a delta cache, texts, and what an unfinished build left behind."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fuzz.places import put, scratch

_NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "a", "a" * 256)


def adapter(data: bytes) -> None:
    """The input is the JSON header; the file is as long as its extents say."""
    from llgbm_pack.sources.adapter import parse_adapter

    head = len(data).to_bytes(8, "little") + data
    parse_adapter(head, len(head) + _extent(data), "x.safetensors", None, "", alpha=16.0)


def _extent(data: bytes) -> int:
    from llgbm_shards.canonical import load_json

    rows = load_json(data, where="x", max_bytes=1 << 20)
    ends = [0]
    for row in rows.values() if isinstance(rows, dict) else ():
        offsets = row.get("data_offsets") if isinstance(row, dict) else None
        if isinstance(offsets, list) and offsets and type(offsets[-1]) is int:
            ends.append(offsets[-1])
    return max(ends)


def adapter_config(data: bytes) -> None:
    from llgbm_pack.sources.adapter_config import load_config, parse_config

    config = parse_config(load_config(data, "adapter_config.json"), "adapter_config.json")
    for name in _NAMES:
        alpha = config.alpha_of(name)
        config.rank_of(name)
        config.scaling_of(1.0 if alpha is None else alpha, 8)  # A tensor's own rank, not the config's.


def pattern(data: bytes) -> None:
    from llgbm_pack.sources.patterns import compile_pattern, matches

    compiled = compile_pattern(data.decode("utf-8", "replace"), "rank_pattern")
    for name in (*_NAMES, "a." * 128, "ab" * 128, ("layers.0." * 28)[:256]):
        matches(compiled, name)


def delta(data: bytes) -> None:
    from llgbm_pack.deltas.file import load_delta

    loaded = load_delta(put(data, "x.npy"))
    assert loaded.array.nbytes <= 2 * len(data)


def delta_manifest(data: bytes) -> None:
    _entries(put(data, "manifest.json"))


def named_delta_manifest(data: bytes) -> None:
    _entries(put(data, "delta_manifest.json"))


def _entries(path: Path) -> None:
    from llgbm_pack.deltas.agree import mixed_provenance
    from llgbm_pack.deltas.manifest import parse_entries, read_manifest

    entries = parse_entries(read_manifest(path), path)
    mixed_provenance(entries)
    for entry in entries:
        places = [entry.file, *([entry.probes_file] if entry.probes_file else [])]
        assert all(".." not in place.parts and place.is_relative_to(path.parent) for place in places)


def texts(data: bytes) -> None:
    from llgbm_pack.sources.text_files import read_text_file
    from llgbm_pack.sources.texts import choose_texts

    found = read_text_file(put(data, "prompts.json"))
    assert choose_texts(found.texts, path="a", seed=0, limit=2)[0] == found.texts[0]


def zoo_manifest(data: bytes) -> None:
    from llgbm_pack.sources.tasks import zoo_tasks

    paths = ["alpha/run_000", "alpha/run_001", "beta/run_000"]
    tasks = zoo_tasks(put(data, "zoo/manifest.json").parent, paths)
    assert set(tasks) <= set(paths)


def shard_record(data: bytes) -> None:
    from llgbm_pack.packing.unfinished import finished_record, record_path

    job = _job()
    path = record_path(scratch() / "out", job.name)
    put(data.replace(b"THE-PLAN", job.digest().encode()), str(path.relative_to(scratch())))
    finished_record(scratch() / "out", job)


@cache
def _job():
    from llgbm_pack.plan.values import ShardJob

    return ShardJob(name="train-000000.tar", split="train", samples=())


def plan(data: bytes) -> None:
    from llgbm_pack.packing.unfinished import _read, _refuse_other

    now = {"fingerprint": "now", "options": {"seed": 1}, "shards": {"a.tar": ["a/b"]}, "tokenizer": {}}
    _refuse_other(_read(put(data, "plan.json")), now, Path("out"))


def lock(data: bytes) -> None:
    from llgbm_pack.packing.lock import _holder, _locked

    fd = os.open(put(data, "lock"), os.O_RDONLY)
    try:
        raise _locked(Path("out/.pack"), _holder(fd))
    finally:
        os.close(fd)


def skipped_list(data: bytes) -> None:
    from llgbm_pack.upkeep.repair_files import known_skipped
    from llgbm_shards.names import SKIPPED_NAME

    assert all(isinstance(path, str) for path in known_skipped(put(data, f"set/{SKIPPED_NAME}").parent) or ())
