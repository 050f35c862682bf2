"""npy, both ways: a strict reader for anybody's float arrays, canonical bytes for ours.

An npy file is a magic, a version, a header length, a header that looks like a Python dict, and the data. numpy writes
that dict in one form only, so it is matched as that form and never evaluated. Pickles and object arrays have no way in.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.errors import HeaderError

#: Most dimensions that are read: what every numpy can hold.
MAX_DIMENSIONS: Final = 32
_NUMPY: Final = b"\x93NUMPY"
_MAGIC: Final = _NUMPY + b"\x01\x00"
_ALIGNMENT: Final = 64
#: Version -> bytes of its header length. Version 3 only lets names of fields be UTF-8, and here are no fields.
_LENGTH_BYTES: Final = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
_MAX_HEADER_BYTES: Final = 4096
_BLOCK: Final = 1 << 16
_HEADER: Final = re.compile(
    rb"\{'descr': '([^'\\]{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)
_DTYPES: Final[dict[bytes, np.dtype[Any]]] = {
    b"<f2": np.dtype("<f2"),
    b"<f4": np.dtype("<f4"),
    b"<f8": np.dtype("<f8"),
}
#: Also of an array of nothing: (0, 2**40, 2**40) has no bytes, and still no numpy can hold it.
_MOST_BYTES: Final = 1 << 62


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The one header a little-endian, C-ordered float32 array of this shape has; 64-byte aligned."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {_shape_text(shape)}, }}".encode()
    text += b" " * (-(len(_MAGIC) + 2 + len(text) + 1) % _ALIGNMENT) + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text


def encode_npy(array: NDArray[np.float32]) -> bytes:
    """Encode a float32 array as npy bytes."""
    return npy_header(array.shape) + np.ascontiguousarray(array, "<f4").tobytes()


def vector_norm(vector: NDArray[np.float32]) -> float:
    """The 2-norm, the same on every machine: squares of float32 are exact in float64, and fsum rounds once."""
    starts = range(0, len(vector), _BLOCK)
    blocks = (np.square(vector[start : start + _BLOCK].astype(np.float64)).tolist() for start in starts)
    return math.sqrt(math.fsum(itertools.chain.from_iterable(blocks)))


def decode_npy(data: bytes | memoryview, shape: tuple[int, ...], *, where: str) -> NDArray[np.float32]:
    """The array as a view on ``data``; it must have the given shape.

    Raises:
        HeaderError: Other header, other shape, or other length.
    """
    view = memoryview(data)
    head = npy_header(shape)
    size = len(head) + 4 * int(np.prod(shape, dtype=object))
    if len(view) != size or bytes(view[: len(head)]) != head:
        expected, got = f"<f4 of shape {shape}, {size} bytes", f"{len(view)} bytes"
        raise HeaderError("not the expected npy array", where=where, expected=expected, got=got)
    return np.frombuffer(view[len(head) :], "<f4").reshape(shape)


def parse_npy(data: bytes, *, where: str) -> NDArray[Any]:
    """The float array in a whole npy file that somebody else wrote, as a view on ``data``.

    Returns:
        Little-endian float16, float32 or float64, of the file's shape (up to 32 dimensions) and order.

    Raises:
        HeaderError: Not in the form that numpy writes, another dtype, or bytes missing or left over.
    """
    text, start = _header_text(data, where)
    header = _HEADER.fullmatch(text)
    shape = None if header is None else _parse_shape(header[3].decode())
    if header is None or shape is None:
        raise HeaderError("not an npy array", where=where, expected="numpy's own header", got=f"{text!r:.80}")
    dtype = _DTYPES.get(header[1])
    if dtype is None:
        got = header[1].decode("latin-1")
        raise HeaderError("array of another dtype", where=where, expected="<f4 (or <f2, <f8)", got=got)
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize > _MOST_BYTES:
        raise HeaderError("impossible shape", where=where, got=f"{shape!r:.80}")
    expected, got = math.prod(shape) * dtype.itemsize, len(data) - start
    if got != expected:
        what = "npy file cut short or too long"
        raise HeaderError(what, where=where, expected=f"{expected}", got=f"{got} bytes")
    order = "F" if header[2] == b"True" else "C"
    return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _header_text(data: bytes, where: str) -> tuple[bytes, int]:
    """The header that looks like a dict, and where the data begin."""
    begin = 8 + _LENGTH_BYTES.get(data[6:8], 0)
    if data[:6] != _NUMPY or begin == 8 or len(data) < begin:
        got = f"{data[:10]!r}"
        raise HeaderError("not an npy array", where=where, expected="version 1.0, 2.0 or 3.0", got=got)
    length = int.from_bytes(data[8:begin], "little")
    most = min(_MAX_HEADER_BYTES, len(data) - begin)
    if length > most:
        expected = f"a header of at most {most} bytes"
        raise HeaderError("not an npy array", where=where, expected=expected, got=f"{length}")
    return data[begin : begin + length], begin + length


def _parse_shape(inner: str) -> tuple[int, ...] | None:
    """The shape that stands between parentheses; None when it is not spelled as Python spells it."""
    # A side of more than 19 digits fits no memory, and a longer text is not turned into a number.
    sides = re.findall(r"[0-9]{1,20}", inner)
    shape = tuple(map(int, sides[: MAX_DIMENSIONS + 1]))
    return shape if len(shape) <= MAX_DIMENSIONS and _shape_text(shape) == f"({inner})" else None


def _shape_text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
