"""Canonical JSON out, strict JSON in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_shards import HeaderError
from llgbm_shards.canonical import MAX_JSON_DEPTH, blake3_hex, dump_json, load_json, xxh3

# Lone surrogates have no UTF-8 form.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def load(data, **options):
    return load_json(data, where="x.json", max_bytes=options.pop("max_bytes", 1 << 20))


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_and_written_again_the_same(value):
    data = dump_json(value)
    assert load(data) == value
    assert dump_json(load(data)) == data
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_arbitrary_bytes_are_read_or_refused_and_never_anything_else(data):
    try:
        value = load(data)
    except HeaderError:
        return
    assert load(dump_json(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}{}",
        b'{"a":1,"a":2}',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"[-1e400]",
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b"[1,]",
        b"'a'",
        b"1" * 5000,
    ],
)
def test_what_is_not_strict_json_is_refused(data):
    with pytest.raises(HeaderError, match=r"x\.json"):
        load(data)


def test_escaped_pairs_of_surrogates_are_characters():
    assert load(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_deep_nesting_is_refused_before_it_is_parsed(bracket):
    with pytest.raises(HeaderError, match="nested too deeply"):
        load(bracket * 100_000)
    fits = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    assert load(fits) is not None
    with pytest.raises(HeaderError, match=f"at most {MAX_JSON_DEPTH} levels"):
        load(b"[" + fits + b"]")


@pytest.mark.parametrize(
    "data", [b"[" + b"[]," * (1 << 21) + b"0]", b"[" + b"0," * (1 << 21) + b"0]", b'"' * (9 << 20)]
)
def test_more_values_than_memory_would_hold_are_refused_before_they_are_parsed(data):
    with pytest.raises(HeaderError, match="too many values"):
        load(data, max_bytes=1 << 26)
    assert load(b'"' + b",[" * (3 << 20) + b'"', max_bytes=1 << 26).count("[") == 3 << 20


def test_brackets_in_strings_are_not_nesting():
    value = {"a": "[" * 200 + '"\\' + "{" * 200, "b\\": "]]"}
    assert load(dump_json(value)) == value


def test_longer_than_allowed_is_refused():
    assert load(b"[1]", max_bytes=3) == [1]
    with pytest.raises(HeaderError, match="at most 2 bytes"):
        load(b"[1]", max_bytes=2)


def test_the_form_is_fixed():
    assert dump_json({"b": [1, 2.5, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,true]}\n'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        dump_json(float("nan"))
    assert json.loads(dump_json({"a": 1e22})) == {"a": 1e22}


def test_digests_are_the_published_ones():
    assert blake3_hex(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert xxh3(b"") == 0x2D06800538D394C2
    assert blake3_hex(memoryview(bytearray(b"abc"))) == blake3_hex(b"abc")
