"""The bytes of two small sets are the recorded ones: a change of them is a change of the format, made knowingly.

All values are multiples of powers of two, so the zoo is the same on any machine. pyarrow and transformers write other bytes
in other versions: of index.parquet its rows are pinned, and the set's own digest is for one version of pyarrow.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pytest
import torch
from blake3 import blake3

from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_shards import ShardSet
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import MODULES, TASKS, write_adapter

COUNT = 7
PYARROW = "26.0.1"
#: Of the whole set without texts, as this pyarrow writes its index.
DIGEST = "9017642e1bb2b0dee68eecb8f1c6263ff93f5b9663998456a55f4b8237ededb3"
PLAIN = {
    "train-000000.tar": "0f93ce5c44e37212b8f66cf4dde22cd0d43690f04963825d876af206ffa6deb4",
    "val-000000.tar": "1e9aac88d3f3750c15a663560dcfc1df900aad0bab5ade25a822e6baa0712fa1",
    "shardset.json": "e50c285ce965a7e2a00b91775814ebf0ea42993f419a0faf86990a8c2e9bff04",
    "index.parquet": "bf31463416b4f5b77327a657b0b33f94f4f88d1bf2114890399b51e8aabab058",
}
TEXTS = {
    "train-000000.tar": "e17b64f6bf722652803f500b5a336848a20be02d98de5960b61a43cc418d5f64",
    "train-000001.tar": "5743abb20719c891f8ead99efe06871d4a69e1c4ed9596c80ab0963491046a31",
    "train-000002.tar": "7293db27d09a267ed347b414afae488a80e1006827522ebff3307f81c17fa33c",
    "val-000000.tar": "63cd309bbcde16df5d67efbc223b2ef0069b59460bfa7e91b44811e59c47a929",
    "shardset.json": "16006e6b87b40da189e4a01eb66fe5df441edf7be9b110ef2b01d12f6b9c11f4",
    "index.parquet": "40e96fa00bee9972a4f13f84bba33ed9cec84329b8dc39fb56308a12612eef01",
}


def exact_pairs(seed, modules):
    """PEFT keys -> tensors of values that bfloat16 holds."""
    random = np.random.default_rng(seed)
    return {
        f"base_model.model.{name}.lora_{side}.weight": torch.from_numpy(
            random.integers(-127, 128, shape) / 4096
        ).bfloat16()
        for name, (width_in, width_out) in modules.items()
        for side, shape in (("A", (4, width_in)), ("B", (width_out, 4)))
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """zoo, of which one lacks a module, one a delta, and one cannot be packed; deltas; tokenizer."""
    root = tmp_path_factory.mktemp("bytes")
    paths = [f"{TASKS[number % len(TASKS)]}/run_{number}" for number in range(COUNT)]
    for number, path in enumerate(paths):
        modules = dict(list(MODULES.items())[: 2 if number == 4 else 3])
        prompts = [f"What is {number}?", "Größe 12", "", "🙂"][: 2 + number % 3]
        pairs = exact_pairs(number, modules)
        write_adapter(root / "zoo" / path, number, modules=modules, prompts=prompts, tensors=pairs)
    (root / "zoo" / paths[-1] / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    random = np.random.default_rng(0)
    deltas = {f"zoo/{path}": (random.integers(-99, 100, 24) / 64).astype(np.float32) for path in paths[1:]}
    DeltaCache(root / "deltas").save_deltas(deltas)
    save_tiny("byt5", root / "tokenizer")
    return root


def pack(root, out, **more):
    options = {"zoo": root / "zoo", "out": out, "deltas": root / "deltas", "missing_delta": "zeros", **more}
    report = build(PackOptions(**options, shard_bytes=12000, split=0.4, split_by="checkpoint"))
    assert (report.packed, len(report.skipped)) == (COUNT - 1, 1)


def digests(out):
    """File -> digest; of record and index, of what they say about files that no library writes in its own way."""
    record = json.loads((out / "shardset.json").read_bytes())
    record["files"] = [file for file in record["files"] if file["name"] == "skipped.json"]
    del record["digest"]
    rows = ShardSet(out).index().to_pylist()
    plain = {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}
    plain["shardset.json"] = json.dumps(record, sort_keys=True).encode()
    plain["index.parquet"] = json.dumps(rows, sort_keys=True, default=bytes.hex).encode()
    return {name: blake3(data).hexdigest() for name, data in plain.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_of_weights_and_deltas(root, tmp_path, workers):
    pack(root, tmp_path / "out", workers=workers)
    assert digests(tmp_path / "out") == PLAIN
    if pyarrow.__version__ == PYARROW:
        assert ShardSet(tmp_path / "out").digest == DIGEST


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_with_texts_cast_and_padded(root, tmp_path, workers):
    texts = {
        "text_tokenizer": str(root / "tokenizer"),
        "forms": ("prompt", "answer", "prompt_answer"),
        "max_texts": 3,
    }
    pack(root, tmp_path / "out", workers=workers, **texts, dtype="float32", rank=6, token_order="dnd", seed=1)
    assert digests(tmp_path / "out") == TEXTS
