"""Reading anybody's npy: all that numpy writes of the float dtypes comes out equal, all else is our error."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llgbm_shards.errors import HeaderError
from llgbm_shards.npy import MAX_DIMENSIONS, parse_npy
from support import traps

npy = functools.partial(traps.npy, data=bytes(12))

FLOATS = st.sampled_from(["<f2", "<f4", "<f8"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
VERSIONS = st.sampled_from([None, (1, 0), (2, 0), (3, 0)])
GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n"


def saved(array, version=None):
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version)
    return sink.getvalue()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_numpy_writes_is_read_as_numpy_reads_it(data):
    array = data.draw(arrays.arrays(data.draw(FLOATS), data.draw(SHAPES)))
    array = array.copy(order=data.draw(st.sampled_from("CF")))
    raw = saved(array, data.draw(VERSIONS))
    ours, theirs = parse_npy(raw, where="x"), np.lib.format.read_array(io.BytesIO(raw))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()
    assert ours.size < 2 or ours.flags.f_contiguous == theirs.flags.f_contiguous
    assert not ours.flags.owndata, "a view: nothing is allocated"


@pytest.mark.parametrize("dimensions", range(MAX_DIMENSIONS + 1))
def test_every_number_of_dimensions(dimensions):
    array = np.ones((1,) * dimensions, "<f8")
    np.testing.assert_array_equal(parse_npy(saved(array), where="x"), array)


OTHERS = [
    "<i4",
    "<u8",
    "|b1",
    "|u1",
    ">f2",
    ">f4",
    ">f8",
    "<c8",
    "|S3",
    "<U3",
    "<M8[s]",
    "|V4",
    "|O",
    [("a", "<f4")],
]


@pytest.mark.parametrize("dtype", OTHERS)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(HeaderError, match=r"dtype|not an npy"):
        parse_npy(saved(np.zeros(3, dtype)), where="x")


@settings(max_examples=300, deadline=None)
@example(0, b"(" * 100)
@example(10, b"(" * 60_000)
@given(st.integers(0, 80), st.binary(min_size=1, max_size=12))
def test_other_bytes_anywhere_in_the_header_are_our_error_or_what_numpy_reads(place, put):
    raw = bytearray(saved(np.arange(3, dtype="<f4")))
    raw[place : place + len(put)] = put
    try:
        ours = parse_npy(bytes(raw), where="x")
    except HeaderError:
        return
    theirs = np.lib.format.read_array(io.BytesIO(raw))
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 3))
def test_any_bytes_for_a_header_are_our_error(text, version):
    for raw in (text, npy(text, version=version)):
        with pytest.raises(HeaderError):
            parse_npy(raw, where="x")


FAULTY = {
    "empty": b"",
    "magic only": npy(GOOD)[:8],
    "cut length": npy(GOOD)[:9],
    "cut header": npy(GOOD)[:40],
    "cut data": npy(GOOD)[:-1],
    "more data": npy(GOOD) + b"\0",
    "version 0": npy(GOOD, version=0),
    "version 4": npy(GOOD, version=4),
    "minor version": npy(GOOD)[:7] + b"\x01" + npy(GOOD)[8:],
    "4 GiB of header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "header over the limit": npy(GOOD[:-1] + b" " * 5000 + b"\n"),
    "no newline": npy(GOOD[:-1]),
    "blanks after the newline": npy(GOOD + b" "),
    "never closes": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,\n"),
    "call": npy(b"{'descr': print('x'), 'fortran_order': False, 'shape': (3,), }\n"),
    "key twice": npy(GOOD.replace(b"'shape'", b"'descr': '<f4', 'shape'")),
    "key more": npy(GOOD.replace(b"}", b"'more': 1, }")),
    "key less": npy(b"{'descr': '<f4', 'shape': (3,), }\n"),
    "other order of keys": npy(b"{'fortran_order': False, 'descr': '<f4', 'shape': (3,), }\n"),
    "number for a flag": npy(GOOD.replace(b"False", b"0")),
    "list for a shape": npy(GOOD.replace(b"(3,)", b"[3]")),
    "number for a shape": npy(GOOD.replace(b"(3,)", b"3")),
    "parenthesis only": npy(GOOD.replace(b"(3,)", b"(3)")),
    "leading zero": npy(GOOD.replace(b"(3,)", b"(03,)")),
    "negative": npy(GOOD.replace(b"(3,)", b"(-3,)")),
    "other digits": npy(GOOD.replace(b"(3,)", "(٣,)".encode())),
    "2**64 items": npy(GOOD.replace(b"(3,)", b"(18446744073709551616,)")),
    "overflow to right": npy(GOOD.replace(b"(3,)", b"(4611686018427387907,)")),
    "two overflow to nothing": npy(GOOD.replace(b"(3,)", b"(4294967296, 4294967296)"), data=b""),
    "nothing, and beyond memory": npy(GOOD.replace(b"(3,)", b"(0, 4294967296, 4294967296)"), data=b""),
    "33 dimensions": npy(GOOD.replace(b"(3,)", b"(" + b"1, " * 32 + b"3)")),
    "1000 dimensions": npy(GOOD.replace(b"(3,)", b"(" + b"1, " * 999 + b"3)")),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_files_are_our_error(name):
    with pytest.raises(HeaderError) as caught:
        parse_npy(FAULTY[name], where="x.npy")
    assert "x.npy" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_message_shows_the_other_dtype_and_the_sizes():
    with pytest.raises(HeaderError, match=r"expected <f4 \(or <f2, <f8\), got >f4"):
        parse_npy(npy(GOOD.replace(b"<f4", b">f4")), where="x")
    with pytest.raises(HeaderError, match=r"cut short or too long: expected 12, got 11 bytes"):
        parse_npy(npy(GOOD)[:-1], where="x")
