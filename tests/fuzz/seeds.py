"""Small sound inputs to start from, made by the functions that the other tests make theirs with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from llgbm_shards import ustar
from llgbm_shards.index import encode_index
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import INDEX_NAME, RECORD_NAME
from llgbm_shards.shardset import ShardSet
from support.synthetic import write_set
from support.tiny_zoo import write_adapter


def make_seeds(directory: Path) -> dict[str, bytes]:
    """Name -> input; a target names the ones that fit it."""
    return {**_of_a_set(directory), **_of_a_zoo(directory), **_of_deltas(), **_of_texts(), **_of_a_build()}


def _of_a_set(directory: Path) -> dict[str, bytes]:
    written = write_set(directory / "set", 2)
    opened = ShardSet(written.path)
    raw = {SUFFIX[extent.field]: opened.read_member(extent) for extent in opened.extents(0)}
    columns = opened.index().to_pydict()
    fields = written.record.members
    rows = {
        name: [item.hex() for item in column] if name.endswith(".blake3") else column
        for name, column in columns.items()
    }
    state = {
        "version": 1,
        "epoch": 0,
        "position": 3,
        "sets": ["00" * 32],
        "overlays": [""],
        "split": "train",
        "filters": "",
    }
    return {
        "tar": (written.path / written.record.shards[0].name).read_bytes(),
        "empty tar": ustar.END,
        "record": (written.path / RECORD_NAME).read_bytes(),
        "index": (written.path / INDEX_NAME).read_bytes(),
        "index-about": encode_index(columns, fields, written.record.about()),
        "rows": _json(rows),
        "sample": raw["json"],
        "pieces": raw["pieces.safetensors"],
        "texts": raw["texts.safetensors"],
        "member-scales": b"\0" + raw["scales.npy"],
        "member-texts": b"\1" + raw["texts.safetensors"],
        "member-delta": b"\2" + raw["delta.npy"],
        "source": raw["source.safetensors"],
        "member-source": b"\4" + raw["source.safetensors"],
        "state": _json({**state, "seed": 0, "shuffle": True, "samples": 12}),
        "urls": b"no file at 'https://me:token@host/a/b?sig=1#x', s3://k:v@b/c and C:/x",
    }


def _of_a_zoo(directory: Path) -> dict[str, bytes]:
    made = write_adapter(directory / "zoo/alpha/run_000", 0)
    weights = (made / "adapter_model.safetensors").read_bytes()
    config = json.loads((made / "adapter_config.json").read_text())
    patterns = {
        "rank_pattern": {"layers.0.*q_proj": 8},
        "alpha_pattern": {"(q|v)_proj": 4.0},
        "use_rslora": True,
    }
    tasks = {"run_000": {"task": "alpha", "path": "/old/zoo/alpha/run_000"}}
    return {
        "weights": weights,
        "weights-header": weights[8 : 8 + int.from_bytes(weights[:8], "little")],
        "config": _json(config),
        "config-patterns": _json({**config, **patterns, "bias": "none", "init_lora_weights": "gaussian"}),
        "pattern": rb"(model\.)?layers\.[0-9]+\.(self_attn|mlp)\.(q|v)_proj",
        "prompts": (made / "prompts.json").read_bytes(),
        "tasks": _json({"adapters": tasks}),
        "tasks-list": _json([{"name": "run_001", "task": "beta", "output_dir": "alpha/run_001"}]),
    }


def _of_deltas() -> dict[str, bytes]:
    entry = {"path": "zoo/alpha/run_000", "norm": 1.5, "shape": [24], "file": "b.npy"}
    config = {"base_model": "/models/tiny", "probes": ["a", "b"], "layer": -1, "dtype": "float32"}
    named = {
        "adapter_path": "/a/b",
        "delta_file": "a.npy",
        "task": "t",
        "delta_norm": 1.0,
        "probes_file": "p.json",
    }
    return {
        "npy": _npy(np.arange(24, dtype="<f4")),
        "npy-2": _npy(np.arange(6, dtype="<f8").reshape(2, 3), (2, 0)),
        "npy-fortran": _npy(np.asfortranarray(np.arange(6, dtype="<f2").reshape(2, 3))),
        "npy-objects": _npy(np.array([None, {}], object)),
        "manifest": _json({"adapters": {"0123456789ab": entry}, "config": config}),
        "named-manifest": _json(
            {"base_activation_file": "base.npy", "adapters": {"a": named}, "model_name": "x"}
        ),
    }


def _of_texts() -> dict[str, bytes]:
    said = [{"from": "system", "value": "s"}, {"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]
    return {
        "texts-list": _json(["one", "two", "three \ud83d\ude42"]),
        "texts-dnd": _json(
            [{"prompt": "p", "response": "r", "system": "s"}, {"prompt": "q", "answer": None}]
        ),
        "texts-sharegpt": _json([{"conversations": said}]),
    }


def _of_a_build() -> dict[str, bytes]:
    source = {"path": "/dev/null", "size": 0, "mtime_ns": 0, "digest": ""}
    record: dict[str, Any] = {
        "name": "train-000000.tar",
        "split": "train",
        "plan": "THE-PLAN",
        "size": 0,
        "digest": "",
    }
    record |= {"rows": [{"key": "a"}], "skipped": [{"checkpoint": "a", "fault": True, "reason": "b"}]}
    record |= {"notes": [{"checkpoint": "a", "what": "b"}], "inputs": [source], "matched_by": {"path": 1}}
    plan = {
        "fingerprint": "then",
        "options": {"seed": 0},
        "shards": {"a.tar": ["a/b", "a/c"]},
        "tokenizer": {},
    }
    return {
        "shard-record": _json({**record, "fallbacks": 0}),
        "plan": _json(plan),
        "lock": _json({"host": "h", "pid": 1, "since": "2026-01-01T00:00:00Z"}),
        "skipped": _json({"skipped": [{"checkpoint": "a/b", "fault": True, "reason": "c"}]}),
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version)
    return sink.getvalue()
