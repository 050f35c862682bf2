"""Rebuilding padded conditions from bare ids, and refusing arrays and descriptions that are not sound."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm_shards.errors import HeaderError, UsageError
from llgbm_shards.texts import ConditionSpec, RaggedTexts, check_length, rebuild_into
from support.conditions import rebuild


def make_spec(**changes):
    fields = {
        "forms": ("prompt",),
        "joiner": "\n",
        "prefix": (1, 2),
        "suffix": (3,),
        "pad_id": 0,
        "padding_side": "right",
        "truncation_side": "right",
        "vocab_size": 100,
    }
    return ConditionSpec(**{**fields, **changes})


def ids(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("padding", "truncation", "length", "expected", "mask"),
    [
        ("right", "right", 8, [1, 2, 7, 8, 9, 3, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]),
        ("left", "right", 8, [0, 0, 1, 2, 7, 8, 9, 3], [0, 0, 1, 1, 1, 1, 1, 1]),
        ("right", "right", 6, [1, 2, 7, 8, 9, 3], [1] * 6),
        ("right", "right", 5, [1, 2, 7, 8, 3], [1] * 5),
        ("left", "left", 5, [1, 2, 8, 9, 3], [1] * 5),
        ("right", "left", 4, [1, 2, 9, 3], [1] * 4),
    ],
)
def test_rebuild_table(padding, truncation, length, expected, mask):
    spec = make_spec(padding_side=padding, truncation_side=truncation)
    input_ids, attention_mask = rebuild(ids(7, 8, 9), spec, length)
    assert input_ids.tolist() == expected
    assert attention_mask.tolist() == mask
    assert input_ids.dtype == attention_mask.dtype == np.int64


@given(
    texts=st.lists(st.lists(st.integers(10, 99), max_size=12), min_size=1, max_size=6),
    length=st.integers(4, 20),
    padding=st.sampled_from(["left", "right"]),
    truncation=st.sampled_from(["left", "right"]),
)
def test_batch_equals_a_plain_model(texts, length, padding, truncation):
    spec = make_spec(padding_side=padding, truncation_side=truncation)
    built = np.full((len(texts), length), -1, np.int64)
    mask = np.full((len(texts), length), -1, np.int64)
    rebuild_into([ids(*text) for text in texts], spec, built, mask)
    for text, row, row_mask in zip(texts, built.tolist(), mask.tolist(), strict=True):
        room = length - 3
        body = [1, 2, *(text[-room:] if truncation == "left" else text[:room]), 3]
        pad = [0] * (length - len(body))
        assert row == (pad + body if padding == "left" else body + pad)
        ones = [1] * len(body)
        assert row_mask == (pad + ones if padding == "left" else ones + pad)


@pytest.mark.parametrize("length", [0, 1, 3, -5])
def test_no_room_for_text_is_refused(length):
    with pytest.raises(UsageError, match="3 special ids"):
        check_length(length, make_spec())


def test_batch_of_another_shape_is_refused():
    with pytest.raises(UsageError, match="shape"):
        rebuild_into([ids(7)], make_spec(), np.zeros((2, 8), np.int64), np.zeros((2, 8), np.int64))


def test_spec_survives_json():
    spec = make_spec(forms=("prompt", "prompt_answer"), joiner="answer: ", truncation_side="left")
    assert ConditionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"forms": []},
        {"forms": ["question"]},
        {"forms": ["prompt_answer", "prompt"]},
        {"forms": ["prompt", "prompt"]},
        {"forms": "prompt"},
        {"joiner": None},
        {"prefix": [1.0]},
        {"prefix": [True]},
        {"prefix": [100]},
        {"pad_id": -1},
        {"pad_id": True},
        {"vocab_size": 0},
        {"vocab_size": 2**31},
        {"padding_side": "both"},
        {"truncation_side": 1},
        {"extra": 1},
    ],
)
def test_unsound_spec_is_refused(change):
    with pytest.raises(HeaderError):
        ConditionSpec.from_json({**make_spec().to_json(), **change})


def test_spec_without_a_field_is_refused():
    for name in make_spec().to_json():
        value = make_spec().to_json()
        del value[name]
        with pytest.raises(HeaderError):
            ConditionSpec.from_json(value)
    with pytest.raises(HeaderError):
        ConditionSpec.from_json(None)


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=8))
def test_ragged_keeps_texts(texts):
    ragged = RaggedTexts.of([ids(*text) for text in texts])
    again = RaggedTexts.checked(ragged.ids, ragged.offsets, where="x", vocab_size=100)
    assert [again[index].tolist() for index in range(len(again))] == texts
    with pytest.raises(IndexError):
        again[len(texts)]


@pytest.mark.parametrize(
    ("values", "offsets"),
    [
        ([1, 2, 3], [0]),
        ([1, 2, 3], []),
        ([1, 2, 3], [0, 2]),
        ([1, 2, 3], [1, 3]),
        ([1, 2, 3], [0, 4]),
        ([1, 2, 3], [0, 5, 3]),
        ([1, 2, 3], [0, -1, 3]),
        ([1, 2, 100], [0, 3]),
        ([1, -2, 3], [0, 3]),
    ],
)
def test_unsound_offsets_and_ids_are_refused(values, offsets):
    with pytest.raises(HeaderError):
        RaggedTexts.checked(ids(*values), np.array(offsets, np.int64), where="x", vocab_size=100)


def test_wrong_dtype_or_rank_is_refused():
    good = np.array([0, 3], np.int64)
    for values in (np.zeros(3, np.int64), np.zeros((3, 1), np.int32)):
        with pytest.raises(HeaderError, match="ids"):
            RaggedTexts.checked(values, good, where="x")
    with pytest.raises(HeaderError, match="offsets"):
        RaggedTexts.checked(ids(1, 2, 3), good.astype(np.int32), where="x")
