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
DIGEST = "2c3046bb5ea2281f302f437c4eb4a58348b5b48d570c7566f2e9be138ebfe3fb"
PLAIN = {
    "train-000000.tar": "22034631fe88463a41ef0b70e611e5672ea84747d0043db06c0176cce53a9c00",
    "val-000000.tar": "006c5ba0a5e3482ebb0d2ab395191fc8aa47b246451b15b1d2fe7d13aa05b988",
    "index.parquet": "4705ba4c50a5ae3132dbb8f70a1782f3e895a84f5c7e834831f69e7f2e781fa7",
    "shardset.json": "8991e51301027b2924c811b6630d77b55b9223ed327053279a55c366c99725c7",
}
TEXTS = {
    "train-000000.tar": "5d193fcce864fe9497691ec34fe014f110a38786fd090530f32ae909c07ace3e",
    "train-000001.tar": "51dc0b3127ca7b60c2bc089111f92a7ec1ab60d2695152b1671cfdd37215271f",
    "train-000002.tar": "bca7f19d839fcc39456e27d897f2ece8c6d804c9344c64fa6a76a46c4a6a4e14",
    "val-000000.tar": "3d1d2b38c3ed53858a356ed2786049591fbf240f565f85e4c31f8e41a78516d3",
    "index.parquet": "3cbe9c3d38700305665bff245049f4d9791b7c0a055a1d01a3343b3b82ef111c",
    "shardset.json": "d24e350b42166c32b38d39b2dede0a1b702e9981277e8f71ff0014b5b4f95648",
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
