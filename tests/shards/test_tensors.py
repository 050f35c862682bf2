"""safetensors: a strict reader for anybody's headers, canonical bytes for our own."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from llgbm_shards import HeaderError
from llgbm_shards.tensors import (
    MAX_HEADER_BYTES,
    decode_arrays,
    encode_arrays,
    header_bytes,
    parse_header,
    read_head,
)

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file(fields, data=b""):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def parse(raw):
    return parse_header(raw, len(raw))


def row(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(["I32", "I64"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
def test_what_is_written_is_read_here_and_by_safetensors(specs):
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(-(2**31), 2**31, shape).astype({"I32": "<i4", "I64": "<i8"}[dtype])
        for name, (dtype, shape) in specs.items()
    }
    data = encode_arrays({name: (specs[name][0], array) for name, array in arrays.items()})
    assert parse(data).data_start % 64 == 0
    for read in (decode_arrays(data, where="x"), load_safetensors(data)):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


def test_files_of_safetensors_itself_are_read():
    arrays = {"b": np.ones((2, 3), np.float16), "a": np.zeros(5, np.float32)}
    header = parse(save_safetensors(arrays, {"format": "pt"}))
    assert header.metadata == {"format": "pt"}
    assert {name: (spec.dtype, spec.shape) for name, spec in header.tensors.items()} == {
        "a": ("F32", (5,)),
        "b": ("F16", (2, 3)),
    }


@pytest.mark.parametrize(
    ("fields", "data", "reason"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "not an object"),
        (b'{"a":1,"a":2}', b"", "duplicate key"),
        ({"a": 1}, b"", "malformed tensor entry"),
        ({"a": {**row(), "extra": 1}}, bytes(8), "malformed tensor entry"),
        ({"a": row(dtype="F99")}, bytes(8), "unknown dtype"),
        ({"a": row(dtype=["F32"])}, bytes(8), "unknown dtype"),
        ({"a": row(shape=(-2,))}, bytes(8), "malformed shape"),
        ({"a": row(shape=(True, 2))}, bytes(8), "malformed shape"),
        ({"a": row(shape=(2.0,))}, bytes(8), "malformed shape"),
        ({"a": row(shape=(1,) * 9)}, bytes(8), "malformed shape"),
        ({"a": row(shape=(2**60,))}, bytes(8), "malformed shape"),
        ({"a": row(shape=(2**47,) * 8)}, bytes(8), "extent does not fit"),
        ({"a": row(offsets=(8, 0))}, bytes(8), "extent does not fit"),
        ({"a": row(offsets=(0, 4))}, bytes(8), "extent does not fit"),
        ({"a": row(offsets=(0, 8, 9))}, bytes(8), "malformed data_offsets"),
        ({"a": row(dtype="F4", shape=(1,), offsets=(0, 1))}, bytes(1), "extent does not fit"),
        ({"a": row(), "b": row()}, bytes(8), "overlap"),
        ({"a": row(offsets=(4, 12))}, bytes(12), "hole"),
        (ONE, bytes(7), "truncated"),
        (ONE, bytes(9), "trailing bytes"),
        ({"__metadata__": {"a": 1}, **ONE}, bytes(8), "__metadata__"),
        ({"__metadata__": None, **ONE}, bytes(8), "__metadata__"),
    ],
)
def test_unsound_headers_are_refused_with_a_reason(fields, data, reason):
    with pytest.raises(HeaderError, match=reason):
        parse(file(fields, data))


@pytest.mark.parametrize("size", range(8))
def test_files_shorter_than_a_length_are_truncated(size):
    with pytest.raises(HeaderError, match="truncated"):
        parse(bytes(size))


def test_header_bombs_are_refused_by_their_length_alone():
    for length in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(HeaderError, match="too long"):
            parse(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(HeaderError, match="truncated"):
        parse((1000).to_bytes(8, "little") + b"{}")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused_and_never_anything_else(data):
    raw = bytearray(file({"a": row(), "b": row(dtype="BF16", shape=(3,), offsets=(8, 14))}, bytes(14)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse(bytes(raw))
    except HeaderError:
        return
    assert sum(spec.end - spec.start for spec in header.tensors.values()) == len(raw) - header.data_start


def test_only_the_canonical_form_is_decoded_as_a_member():
    arrays = {"x": np.arange(3, dtype="<i4")}
    data = encode_arrays({"x": ("I32", arrays["x"])})
    for other in (
        save_safetensors({"x": arrays["x"]}),
        save_safetensors({"x": arrays["x"]}, {"a": "b"}),
        data.replace(b" \x00", b"\n\x00", 1),
    ):
        if other != data:
            with pytest.raises(HeaderError, match=r"canonical|JSON"):
                decode_arrays(other, where="x")
    with pytest.raises(HeaderError, match="no place in a sample"):
        decode_arrays(header_bytes({"x": ("F64", (0,))}), where="x")


def test_header_is_read_from_a_file_without_its_data(tmp_path):
    path = tmp_path / "a.safetensors"
    raw = file(ONE, bytes(8))
    path.write_bytes(raw)
    head, size = read_head(path)
    assert head == raw[:-8]
    assert parse_header(head, size).tensors["a"].shape == (2,)
    path.write_bytes(raw[:-1])
    with pytest.raises(HeaderError, match=r"a\.safetensors.*truncated"):
        parse_header(*read_head(path), where=path.name)


def test_of_a_header_bomb_no_more_than_the_limit_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little"))
    os.truncate(path, 1 << 32)
    head, size = read_head(path)
    assert (len(head), size) == (8 + MAX_HEADER_BYTES, 1 << 32)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    errors = []

    def read():
        with pytest.raises(HeaderError, match="not a regular file") as caught:
            read_head(tmp_path / "a.safetensors")
        errors.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert errors, "reading the header waits for a writer"
