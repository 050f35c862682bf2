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
DIGEST = "4c8c3bf11ea4b759e5161f3f6dc39df359ba808837ff28dd3bdbc39e44b61d2d"
PLAIN = {
    "train-000000.tar": "5bee1fdfd95c0f37f2a54b1fb685302f20e2d849603aa90532a845c62f105147",
    "val-000000.tar": "486dc609bbdea9459269619d2ff5eddbc7e2da53bd854a3eeb4757bd7c8dc773",
    "index.parquet": "46d8166c3ae82672deec8cdf0bb034f346c321d9c5ae45721b732b11ca619f1c",
    "shardset.json": "5cbcedfe2ec7b610d580bcc352ad6d36b9c67b751edd99ceb7a87a5dc3194b06",
}
TEXTS = {
    "train-000000.tar": "6d92f12249a6f53017c9e173bb858f7b72ef74a7cfbd5423f12789c248a913b9",
    "train-000001.tar": "007a43f846658f2e9e34b249aca558f9c53943b19e342a3af8bf153185e49c4f",
    "train-000002.tar": "8bb35c6dd37590d7c71f7f6be71b628eed56f2f9fdbf1294e4524229d8d720c7",
    "val-000000.tar": "989450563e87c358786ed664deabcde8fc9b09e1616a05d95106bb9135c101d4",
    "index.parquet": "dae4fb5f2407fa382bdcf9b2b0fdddf6503e11aeebcc068531414eaf443f1bb7",
    "shardset.json": "e2255e55b4a190fba3396738a09bdfc67060713e6e316e277d16fc42a7a6ea0a",
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
