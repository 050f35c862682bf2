"""The deep check on really packed sets: sound values pass, and each broken promise is named.

The sets are rewritten consistently (digests, index, record), so that only the deep check can tell.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from llgbm_pack import PackOptions, build
from llgbm_shards import ShardSet, check
from llgbm_shards.canonical import dump_json
from llgbm_shards.deep import padding_mask
from support.edited_set import rewrite
from support.synthetic import small_layout
from support.tiny_zoo import MODULES, write_adapter, write_deltas, write_zoo

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def packed(demo_zoo, tmp_path_factory):
    """Four checkpoints with texts and deltas: one with a fresh B, one of lower rank, one without a module.

    The chunk of 10 divides no width, so that last pieces hold padding.
    """
    root = tmp_path_factory.mktemp("deep")
    paths = write_zoo(root / "zoo", 4)
    fresh = write_adapter(root / "zoo" / paths[1], 1)
    _zero_b(fresh)
    write_adapter(root / "zoo" / paths[2], 2, rank=2)
    write_deltas(root / "deltas", paths[:3])
    build(
        PackOptions(
            zoo=root / "zoo",
            out=root / "out",
            deltas=root / "deltas",
            text_tokenizer=str(demo_zoo.tokenizer),
            forms=("prompt", "answer", "prompt_answer"),
            missing_delta="zeros",
            rank=4,
            chunk=10,
            workers=1,
        )
    )
    return root / "out"


def _zero_b(directory):
    import torch
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in tensors.items()},
        path,
    )


@pytest.fixture
def out(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "out")


def faults(path):
    """(member, what) of what a deep check finds; the full check must find nothing."""
    assert check(path).sound
    report = check(path, level="deep")
    assert all(finding.kind == "damage" and finding.key for finding in report.findings)
    return {(finding.member, finding.what) for finding in report.findings}


def edit_json(path, change, **options):
    def edit(key, data):
        info = json.loads(data["json"])
        change(info)
        return {**data, "json": dump_json(info)}

    rewrite(path, edit, **options)


def test_packed_sets_pass(out, demo_zoo, tmp_path):
    report = check(out, level="deep")
    assert report.sound, report.findings
    assert report.samples_read == 4
    options = {"deltas": demo_zoo.deltas, "text_tokenizer": str(demo_zoo.tokenizer), "missing_delta": "zeros"}
    for dtype in ("float32", "float16"):
        build(PackOptions(zoo=demo_zoo.zoo, out=tmp_path / dtype, dtype=dtype, workers=1, **options))
        assert check(tmp_path / dtype, level="deep").findings == ()


def test_padding_is_where_the_layout_and_the_ranks_say(out):
    opened = ShardSet(out)
    for number in range(4):
        sample = opened.read_sample(number)
        ranks = tuple(module["rank"] for module in sample.json["modules"])
        mask = padding_mask(opened.layout, ranks)
        np.testing.assert_array_equal(mask, sample.pieces == 0x7FC0)
        assert mask.any()
    layout = dataclasses.replace(small_layout(rank=3))
    assert padding_mask(layout, (3, 0)).sum(axis=(1, 2)).tolist() == [0, 0, 0, 12, 12, 12]
    assert padding_mask(layout, (2, 3)).sum(axis=(1, 2)).tolist() == [4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("where", "bits", "expected"),
    [
        ("padding", 0xFFC0, "padding is not the one NaN pattern"),
        ("padding", 0x3F80, "padding is not the one NaN pattern"),
        ("value", 0x7FC0, "NaN or infinity outside padding"),
        ("value", 0x7F80, "NaN or infinity outside padding"),
        ("still", 0x3F80, "not the mean in a piece of std 0"),
    ],
)
def test_wrong_values_of_pieces_are_named(out, where, bits, expected):
    opened = ShardSet(out)

    def edit(key, data):
        number = opened.number(key)
        sample = opened.read_sample(number)
        mask = padding_mask(opened.layout, tuple(module["rank"] for module in sample.json["modules"]))
        still = (sample.scales[:, 1] == 0)[:, None, None] & ~mask
        places = {"padding": mask, "value": ~mask & ~still, "still": still}[where]
        if number != 2 if where != "still" else not still.any():
            return data
        raw = bytearray(data["pieces"])
        pieces = np.frombuffer(raw, "<u2", offset=len(raw) - sample.pieces.nbytes).reshape(
            sample.pieces.shape
        )
        pieces[tuple(np.argwhere(places)[0])] = bits
        return {**data, "pieces": bytes(raw)}

    rewrite(out, edit)
    [(member, what)] = faults(out)
    assert member == "pieces.safetensors"
    assert what.startswith(f"{expected}: 1 values, the first in token ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-0.5, "negative std: 1 values, the first in token 0"),
        (np.nan, "not finite: 1 values, the first in token 0"),
        (np.inf, "not finite: 1 values, the first in token 0"),
        (0.1, "not a bfloat16 value: 1 values, the first in token 0"),
    ],
)
def test_wrong_scales_are_named(out, value, expected):
    first = ShardSet(out).keys[0]

    def edit(key, data):
        raw = bytearray(data["scales"])
        np.frombuffer(raw, "<f4", offset=128)[1] = value
        return {**data, "scales": bytes(raw)} if key == first else data

    rewrite(out, edit)
    assert faults(out) == {("scales.npy", expected)}


def test_scales_of_an_absent_module_are_zero(out):
    def absent(info):
        info["modules"][0] |= {"rank": 0, "scaling": 0.0}

    edit_json(out, absent)
    found = {(member, what.partition(":")[0]) for member, what in faults(out)}
    assert ("scales.npy", "not (0, 0) for an absent module") in found
    assert ("pieces.safetensors", "padding is not the one NaN pattern") in found


def test_ids_outside_the_vocabulary_and_other_counts_of_texts_are_named(out):
    first = ShardSet(out).keys[0]
    size = ShardSet(out).record.texts["vocab_size"]

    def edit(key, data):
        raw = bytearray(data["texts"])
        np.frombuffer(raw, "<i4")[-1] = size
        return {**data, "texts": bytes(raw)} if key == first else data

    rewrite(out, edit)
    [(member, what)] = faults(out)
    assert member == "texts.safetensors"
    assert f"id outside the vocabulary: expected 0 to {size - 1}" in what
    edit_json(out, lambda info: info["texts"].append({"prompt": "more", "answer": ""}))
    assert ("texts.safetensors", "answer: expected 3 texts, as in the json, got 2") in faults(out)


@pytest.mark.parametrize(
    ("value", "expected"), [(np.nan, "not finite: 1 values"), (5.0, "its norm is not the json's: expected ")]
)
def test_wrong_deltas_are_named(out, value, expected):
    opened = ShardSet(out)
    number = next(number for number in range(4) if opened.read_sample(number).json["has_delta"])

    def edit(key, data):
        raw = bytearray(data["delta"])
        np.frombuffer(raw, "<f4", offset=128)[0] = value
        return {**data, "delta": bytes(raw)} if key == opened.keys[number] else data

    rewrite(out, edit)
    [(member, what)] = faults(out)
    assert member == "delta.npy"
    assert what.startswith(expected)


def test_delta_of_a_sample_without_one_is_zero(out):
    def edit(key, data):
        if json.loads(data["json"])["has_delta"]:
            return data
        raw = bytearray(data["delta"])
        np.frombuffer(raw, "<f4", offset=128)[3] = 1
        return {**data, "delta": bytes(raw)}

    rewrite(out, edit)
    assert faults(out) == {("delta.npy", "not zero, though the json says that there is no delta")}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda info: info.pop("task"), "json: expected the keys "),
        (lambda info: info.update(note="x"), "json: expected the keys "),
        (lambda info: info.update(alpha=8), "alpha: expected float, got int 8"),
        (lambda info: info.update(rank=True), "rank: expected int, got bool True"),
        (lambda info: info.update(lora_dropout=0), "lora_dropout: expected float, got int 0"),
        (lambda info: info.pop("task_type"), "json: expected the keys "),
        (lambda info: info.update(task=None), "task: expected str, got NoneType None"),
        (lambda info: info.update(texts=[]), "texts: expected a list that is not empty, got []"),
        (
            lambda info: info["texts"][0].pop("answer"),
            "texts[0]: expected the keys prompt, answer, got prompt",
        ),
        (lambda info: info["delta"].update(norm=0), "delta.norm: expected float, got int 0"),
        (lambda info: info.update(source_digest="0x"), "source_digest: expected 64 lowercase hex digits"),
        (lambda info: info.update(source_dtype="F8"), "source_dtype: expected one of bfloat16"),
        (lambda info: info.update(task="other"), "task is not the index's: expected "),
        (
            lambda info: info.update(checkpoint="other"),
            "the key is not that of its checkpoint: expected other-",
        ),
        (lambda info: info["modules"].reverse(), "its modules are not those of the set, in their order"),
    ],
)
def test_wrong_json_is_named(out, change, expected):
    edit_json(out, change)
    found = faults(out)
    assert all(member == "json" for member, what in found if expected in what)
    assert any(what.startswith(expected) for _, what in found), found


def test_json_that_is_not_canonical_or_lists_other_members_is_named(out):
    rewrite(out, lambda key, data: {**data, "json": data["json"] + b" "}, relist=False)
    assert ("json", "not canonical JSON") in faults(out)

    def other(info):
        info["members"][0]["digest"] = "00" * 32

    edit_json(out, other, relist=False)
    assert any(what.startswith("its list of members is not the index's") for _, what in faults(out))


def test_index_that_says_otherwise_is_named(out):
    rewrite(out, lambda key, data: data, columns=lambda row: {**row, "delta_norm": row["delta_norm"] + 1})
    assert all(what.startswith("delta.norm is not the index's: expected ") for _, what in faults(out))
    assert len(check(out, level="deep").findings) == 4


def test_member_of_another_shape_is_named(out):
    rewrite(out, lambda key, data: {**data, "scales": data["scales"][:-8]})
    [(member, what)] = faults(out)
    assert member == "scales.npy"
    assert what.startswith("not the expected npy array: expected <f4 of shape")


def test_the_modules_of_the_zoo_leave_padding_at_this_chunk():
    assert all(width % 10 for widths in MODULES.values() for width in widths)
