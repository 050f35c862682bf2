"""npy version 1.0 for float32 arrays, canonical bytes both ways. Pickles and object arrays have no way in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.errors import HeaderError

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The one header a little-endian, C-ordered float32 array of this shape has; 64-byte aligned."""
    dims = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {dims}, }}".encode()
    text += b" " * (-(len(_MAGIC) + 2 + len(text) + 1) % _ALIGNMENT) + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text


def encode_npy(array: NDArray[np.float32]) -> bytes:
    """Encode a float32 array as npy bytes."""
    return npy_header(array.shape) + np.ascontiguousarray(array, "<f4").tobytes()


def decode_npy(data: bytes | memoryview, shape: tuple[int, ...], *, where: str) -> NDArray[np.float32]:
    """The array as a view on ``data``; it must have the given shape.

    Raises:
        HeaderError: Other header, other shape, or other length.
    """
    view = memoryview(data)
    head = npy_header(shape)
    size = len(head) + 4 * int(np.prod(shape, dtype=object))
    if len(view) != size or bytes(view[: len(head)]) != head:
        raise HeaderError(
            "not the expected npy array",
            where=where,
            expected=f"<f4 of shape {shape}, {size} bytes",
            got=f"{len(view)} bytes",
        )
    return np.frombuffer(view[len(head) :], "<f4").reshape(shape)
