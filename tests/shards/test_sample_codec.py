"""The sample codec: keys, members, and that only what the record describes is decoded."""

from __future__ import annotations

import re

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_shards import HeaderError
from llgbm_shards import members as codec
from llgbm_shards.canonical import load_json, xxh3
from llgbm_shards.layout import BIT_DTYPE
from llgbm_shards.members import KEY, SUFFIX, sample_key
from support.synthetic import small_layout

PATHS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90)
DTYPES = ["bfloat16", "float16", "float32"]


def joined(member):
    data = b"".join(bytes(part) for part in member.parts)
    assert len(data) == member.size
    assert blake3(data).digest() == member.blake3
    assert xxh3(data) == member.xxh3_64
    return data


@settings(max_examples=300, deadline=None)
@given(PATHS)
def test_a_key_is_readable_short_and_free_of_dots(path):
    key = sample_key(path)
    assert KEY.fullmatch(key)
    assert key.endswith("-" + blake3(path.encode()).hexdigest()[:8])
    assert not key.startswith(("_", "-"))
    assert max(len(f"{key}.{suffix}") for suffix in SUFFIX.values()) < 100


def test_keys_are_those_of_the_format():
    assert re.fullmatch("root-[0-9a-f]{8}", sample_key("."))
    assert sample_key("_a/lr1e-3.5").startswith("a-lr1e-3-5-")
    assert sample_key("a/lr1e-3.5_x") != sample_key("a/lr1e-3-5_x")
    assert sample_key("a" * 80)[:61] == "a" * 60 + "-"


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_and_scales_come_back_to_the_bit(dtype):
    layout = small_layout(dtype=dtype)
    rng = np.random.default_rng(0)
    body = rng.integers(0, 2**16, layout.pieces_shape).astype(BIT_DTYPE[dtype])
    scales = rng.standard_normal((layout.num_tokens, 2), np.float32)
    raw = joined(codec.encode_pieces(body, layout))
    assert len(raw) - layout.pieces_bytes == len(codec.pieces_header(layout))
    assert len(codec.pieces_header(layout)) % 64 == 0
    np.testing.assert_array_equal(codec.decode_pieces(raw, layout, where="x"), body)
    np.testing.assert_array_equal(
        codec.decode_scales(joined(codec.encode_scales(scales, layout)), layout, where="x"), scales
    )
    sizes = codec.fixed_sizes(layout, 7)
    assert sizes["pieces"] == len(raw)
    assert sizes["scales"] == codec.encode_scales(scales, layout).size
    assert sizes["delta"] == codec.encode_delta(np.zeros(7, np.float32)).size


def test_scales_and_delta_are_plain_npy_files(tmp_path):
    layout = small_layout()
    scales = np.arange(12, dtype=np.float32).reshape(6, 2)
    for name, member, array in (
        ("scales.npy", codec.encode_scales(scales, layout), scales),
        ("delta.npy", codec.encode_delta(scales[0]), scales[0]),
    ):
        (tmp_path / name).write_bytes(joined(member))
        np.testing.assert_array_equal(np.load(tmp_path / name, allow_pickle=False), array)
        np.save(tmp_path / "ours.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / name).read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), min_size=1, max_size=5))
def test_ragged_texts_come_back(texts):
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    ids = np.array([token for text in texts for token in text], np.int32)
    raw = joined(codec.encode_texts({"prompt": (ids, offsets)}))
    got_ids, got_offsets = codec.decode_texts(raw, ["prompt"], where="x")["prompt"]
    np.testing.assert_array_equal(got_ids, ids)
    np.testing.assert_array_equal(got_offsets, offsets)


WRAPPED = [0, 2**63 - 1, -(2**63), -1, 3]  # the differences of these wrap around to none below 0


@pytest.mark.parametrize("offsets", [[0], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3], [0, -1, 3], WRAPPED])
def test_offsets_that_do_not_partition_the_ids_are_refused(offsets):
    member = codec.encode_texts({"prompt": (np.zeros(3, np.int32), np.array(offsets, np.int64))})
    with pytest.raises(
        HeaderError, match="offsets do not divide the ids: expected at least two, climbing from 0 to 3"
    ):
        codec.decode_texts(joined(member), ["prompt"], where="texts")


def test_a_negative_id_is_refused():
    member = codec.encode_texts({"prompt": (np.array([3, -1], np.int32), np.array([0, 2], np.int64))})
    with pytest.raises(HeaderError, match="id outside the vocabulary: expected 0 to 2147483647, got -1 to 3"):
        codec.decode_texts(joined(member), ["prompt"], where="texts")


def test_other_forms_than_the_record_names_are_refused():
    member = codec.encode_texts({"prompt": (np.zeros(1, np.int32), np.array([0, 1]))})
    with pytest.raises(HeaderError, match="do not hold the set's forms"):
        codec.decode_texts(joined(member), ["prompt", "answer"], where="texts")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_members_are_refused_or_decode_to_the_shape_of_the_record(data):
    layout = small_layout()
    ids = (np.arange(4, dtype=np.int32), np.array([0, 1, 4], np.int64))
    members = {
        "pieces": (
            codec.encode_pieces(np.zeros(layout.pieces_shape, "<u2"), layout),
            codec.decode_pieces,
            layout,
        ),
        "scales": (codec.encode_scales(np.zeros((6, 2), np.float32), layout), codec.decode_scales, layout),
        "delta": (codec.encode_delta(np.zeros(5, np.float32)), codec.decode_delta, 5),
        "texts": (codec.encode_texts({"prompt": ids}), codec.decode_texts, ["prompt"]),
        "source": (
            codec.encode_source(b"header", b"{}"),
            lambda raw, _, where: codec.decode_source(raw, where=where),
            None,
        ),
    }
    member, decode, about = members[data.draw(st.sampled_from(sorted(members)))]
    raw = bytearray(joined(member))
    change = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if change == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw += data.draw(st.binary(min_size=1, max_size=9))
    try:
        decoded = decode(bytes(raw), about, where="x")
    except HeaderError:
        return
    assert change == "flip"
    if decode is codec.decode_texts:
        assert decoded["prompt"][1][-1] == len(decoded["prompt"][0])


@pytest.mark.parametrize(
    "body",
    [np.zeros((6, 2, 5), "<u2"), np.zeros((6, 2, 4), "<u4"), np.zeros((6, 4, 2), "<u2").transpose(0, 2, 1)],
)
def test_arrays_that_do_not_fit_the_layout_are_not_written(body):
    with pytest.raises(HeaderError, match="does not fit the layout"):
        codec.encode_pieces(body, small_layout())


def test_pickles_and_object_arrays_have_no_way_in(tmp_path):
    np.save(tmp_path / "a.npy", np.array([None, 1], object), allow_pickle=True)
    with pytest.raises(HeaderError, match="not the expected npy array"):
        codec.decode_delta((tmp_path / "a.npy").read_bytes(), 2, where="x")


def test_json_lists_the_other_members():
    layout = small_layout()
    others = [codec.encode_scales(np.zeros((6, 2), np.float32), layout)]
    info = load_json(joined(codec.encode_json({"a": 1}, others)), where="x", max_bytes=1000)
    assert info == {
        "a": 1,
        "members": [{"name": "scales.npy", "size": others[0].size, "digest": others[0].blake3.hex()}],
    }
