"""Inputs, options or zoo edited between a kill and the next run: packed again or refused, never a silent mix."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from llgbm_pack import DeltaCache, build
from llgbm_shards import check
from llgbm_shards.errors import PlanError, StorageError
from support.tiny_zoo import MODULES, random_pairs, tree, write_adapter, write_deltas, write_zoo
from support.unfinished import COUNT, Stop, StopAfter, broken_off, options, shards


def finished_path(out):
    """A checkpoint whose shard is finished."""
    from llgbm_shards.canonical import load_json

    record = next(path for path in sorted((out / ".pack").glob("train-*.json")))
    return load_json(record.read_bytes(), where="", max_bytes=1 << 20)["rows"][0]["checkpoint"]


def edit_weights(root, path):
    write_adapter(root / "zoo" / path, 999)


def edit_weights_in_place(root, path):
    """Same size, same mtime to the second: only the nanoseconds and the bytes differ."""
    file = root / "zoo" / path / "adapter_model.safetensors"
    data, seconds = bytearray(file.read_bytes()), int(file.stat().st_mtime)
    data[-2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(seconds * 10**9 + 1, seconds * 10**9 + 1))


def edit_config(root, path):
    file = root / "zoo" / path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 64'))


def edit_prompts(root, path):
    file = root / "zoo" / path / "prompts.json"
    file.write_text(file.read_text().replace("What is it?", "What was it?"))


def remove_prompts(root, path):
    (root / "zoo" / path / "prompts.json").unlink()


def edit_delta(root, path):
    DeltaCache(root / "deltas").save_delta(f"zoo/{path}", np.ones(24, np.float32))


def name_task(root, path):
    (root / "zoo/manifest.json").write_text(json.dumps({"adapters": [{"path": path, "task": "another"}]}))


@pytest.mark.parametrize(
    "edit",
    [edit_weights, edit_weights_in_place, edit_config, edit_prompts, remove_prompts, edit_delta, name_task],
)
def test_an_edited_input_packs_its_shard_again(made, own, edit):
    out = broken_off(own)
    done = shards(out)
    edit(own, finished_path(out))
    report = build(options(own, out, workers=1))
    assert report.resumed == done - 1
    build(options(own, own / "fresh", workers=1))
    assert tree(out) == tree(own / "fresh") != tree(made / "unbroken")


def test_texts_that_appear_are_an_edit_too(own):
    for file in (own / "zoo").rglob("prompts.json"):
        file.unlink()
    out = broken_off(own)
    path = finished_path(out)
    (own / "zoo" / path / "prompts.json").write_text('{"prompts": ["Now there are texts."]}')
    build(options(own, out, workers=1))
    build(options(own, own / "fresh", workers=1))
    assert tree(out) == tree(own / "fresh")


def test_a_touched_but_equal_input_is_not_packed_again(own):
    out = broken_off(own)
    done = shards(out)
    for file in (own / "zoo").rglob("*"):
        os.utime(file)
    report = build(options(own, out, workers=1))
    assert report.resumed == done


def test_a_mended_checkpoint_is_tried_again(own):
    out, bad = own / "out", own / "zoo/alpha/run_000"
    tensors = random_pairs(0)
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_adapter(bad, 0, tensors=tensors)
    os.utime(
        bad / "adapter_model.safetensors", (0, 0)
    )  # else its delta is stale, which --strict knows before it packs
    report = build(options(own, out, workers=1, strict=True))
    assert (report.committed, report.packed, report.exit_code) == (False, COUNT - 1, 1)
    write_adapter(bad, 0)
    report = build(options(own, out, workers=1))
    assert (report.committed, report.resumed, report.packed, report.skipped) == (True, COUNT - 1, COUNT, ())
    assert report.notes[0].what == "stale delta: the checkpoint is newer than its delta"


def test_a_layout_that_changed_its_majority_packs_everything_again(tmp_path):
    """The shard of an unedited checkpoint would have another module table than its neighbours."""
    wide, narrow = dict(MODULES), dict(list(MODULES.items())[:1])
    paths = write_zoo(tmp_path / "zoo", 5, modules=narrow)
    write_deltas(tmp_path / "deltas", paths)
    with pytest.raises(Stop):
        build(options(tmp_path, tmp_path / "out", workers=1), progress=StopAfter(4))
    for number in (0, 1, 2):
        write_adapter(tmp_path / "zoo" / paths[number], number, modules=wide)
    report = build(options(tmp_path, tmp_path / "out", workers=1))
    assert report.resumed == 0
    assert check(tmp_path / "out").sound
    build(options(tmp_path, tmp_path / "fresh", workers=1))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard_bytes": 5000}, r"shard bytes 5000 \(was 1\)"),
        ({"seed": 1}, r"seed 1 \(was 0\)"),
        ({"exclude": ("alpha/run_000",)}, r"exclude .*1 checkpoints no longer to pack \(alpha/run_000\)"),
        ({"maps": (("zoo", "zoo"),)}, r"map \['zoo=zoo'\]"),
    ],
)
def test_another_plan_is_refused_in_words(own, change, said):
    out = broken_off(own)
    before = tree(out)
    with pytest.raises(PlanError, match=said) as caught:
        build(options(own, out, workers=1, **change))
    assert caught.value.exit_code == 2
    assert f"delete {out} to begin anew" in str(caught.value)
    assert tree(out) == {**before, ".pack/lock": b""}


def test_a_new_checkpoint_is_refused_in_words(own):
    out = broken_off(own)
    write_adapter(own / "zoo/alpha/run_100", 100)
    DeltaCache(own / "deltas").save_delta("zoo/alpha/run_100", np.ones(24, np.float32))
    with pytest.raises(PlanError, match=r"1 checkpoints more to pack \(alpha/run_100\)"):
        build(options(own, out, workers=1))


def test_another_text_tokenizer_is_refused(demo_zoo, own):
    tokenizer = own / "tokenizer"
    shutil.copytree(demo_zoo.tokenizer, tokenizer)
    out = broken_off(own, text_tokenizer=str(tokenizer))
    config = tokenizer / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 99}))
    with pytest.raises(PlanError, match="another text tokenizer"):
        build(options(own, out, workers=1, text_tokenizer=str(tokenizer)))


def test_an_input_that_changes_while_the_build_runs_is_no_silent_mix(own):
    class Edit(StopAfter):
        def advanced(self, samples, source_bytes):
            if samples == COUNT:
                edit_weights(own, "alpha/run_000")

    with pytest.raises(StorageError, match=r"changed while the build was running.*again"):
        build(options(own, own / "out", workers=1), progress=Edit(0))
    build(options(own, own / "out", workers=1))
    build(options(own, own / "fresh", workers=1))
    assert tree(own / "out") == tree(own / "fresh")
