"""The examples, run on a small packed set: what LLGBM's and Drag-and-Drop-LLMs' training code would be given."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llgbm_pack import DeltaCache, LoraTokenizer2D, PackOptions, build
from support.examples import load, run
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import DELTA_WIDTH, write_deltas, write_zoo

PROMPTS = [f"Question {number}?" for number in range(6)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """zoo, deltas (the last of six checkpoints has none), shards, and DnD's own kind of zoo."""
    root = tmp_path_factory.mktemp("examples")
    paths = write_zoo(root / "zoo", 6, prompts=PROMPTS)
    for number, path in enumerate(paths):
        place = root / "dnd" / path.split("/")[0] / f"{number}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "zoo" / path / "adapter_model.safetensors", place)
    options = {
        "deltas": write_deltas(root / "deltas", paths[:-1]),
        "text_tokenizer": str(save_tiny("bert", root / "tokenizer")),
        "token_order": "dnd",
        "workers": 1,
    }
    build(PackOptions(zoo=root / "zoo", out=root / "shards", missing_delta="zeros", **options))
    build(PackOptions(zoo=root / "dnd", out=root / "dnd-shards", alpha=8.0, **{**options, "deltas": None}))
    return root


def test_both_run_as_programs(packed, monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "llgbm", packed / "shards")
    assert len(lines) == 3
    assert all("'condition_ids': (2, 8, 256)" in line for line in lines)
    assert all("['6 tensors', '6 tensors']" in line for line in lines)
    lines = run(monkeypatch, capsys, "dnd", packed / "shards", packed / "zoo", "alpha", "beta")
    assert len(lines) == 6
    assert all("torch.bfloat16 (2, 4, 64) (2, 4, 64)" in line for line in lines[:3])
    assert all(Path(line.split()[-1]).is_file() for line in lines[3:])


def test_llgbm_is_given_what_its_training_step_reads(packed):
    deltas = DeltaCache(packed / "deltas").get_all_deltas()
    batches = load("llgbm")["training_batches"](
        str(packed / "shards"), lambda_weight=0.0, batch_size=2, num_texts=3, max_text_length=12
    )
    names = []
    for batch in itertools.islice(batches, 6):  # three epochs of two batches
        assert set(batch) == {"delta_teacher", "condition_ids", "attention_mask", "tasks", "adapter_names"}
        assert batch["condition_ids"].shape == batch["attention_mask"].shape == (2, 3, 12)
        assert (batch["delta_teacher"].shape, batch["delta_teacher"].dtype) == (
            (2, DELTA_WIDTH),
            torch.float32,
        )
        for row, name in enumerate(batch["adapter_names"]):
            assert torch.equal(batch["delta_teacher"][row], torch.tensor(deltas[f"zoo/{name}"]))
            assert batch["tasks"][row] == name.split("/")[0]
        names += batch["adapter_names"]
    batches.close()
    assert set(names) <= {key.removeprefix("zoo/") for key in deltas}, "one without a delta is no teacher"
    assert all(len(set(names[start : start + 4])) == 4 for start in (0, 4, 8))


def test_dnd_trains_without_an_end_on_the_datasets_it_names(packed):
    batches = load("dnd")["training_batches"](
        str(packed / "shards"), ["alpha", "beta"], batch_size=4, num_texts=3, max_text_length=16
    )
    seen = []
    for tokens, ids, mask in itertools.islice(batches, 5):  # an epoch is one batch
        assert tokens.dtype == torch.bfloat16
        assert ids.shape == mask.shape == (4, 3, 16)
        real = ~torch.isnan(tokens)
        assert real.any()
        assert not torch.isnan(torch.nan_to_num_(tokens, nan=0.0)).any()
        seen.append(ids)
    batches.close()
    assert len({ids.sort(0).values.numpy().tobytes() for ids in seen}) > 1, "texts are drawn anew"


@pytest.mark.parametrize(("shards", "zoo"), [("shards", "zoo"), ("dnd-shards", "dnd")])
def test_dnd_generates_with_the_checkpoint_that_the_tokens_are_of(packed, shards, zoo, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # the main process of two: it alone generates, of all samples
    monkeypatch.setenv("WORLD_SIZE", "2")
    batches = load("dnd")["generation_batches"](
        str(packed / shards), str(packed / zoo), ["gamma"], num_texts=2, max_text_length=16
    )
    found = [next(batches) for _ in range(4)]  # two epochs, in the set's order
    batches.close()
    tags = [tag for _, _, _, tag in found]
    assert tags[:2] == tags[2:]
    assert len(set(tags)) == 2
    for tokens, ids, mask, tag in found:
        assert ids.shape == mask.shape == (1, 2, 16)
        want, _ = LoraTokenizer2D(order="dnd").tokenize(load_file(tag))
        assert torch.equal(tokens[0].nan_to_num(7), want.bfloat16().nan_to_num(7))
