"""safetensors, both ways: a strict bounded reader for anybody's files, canonical bytes for ours.

A safetensors file is an 8-byte little-endian header length, a JSON header ``{name: {dtype, shape,
data_offsets}}`` and the data section. The canonical form has sorted keys, no metadata, data in the order of
falling item size then name, and a header padded with spaces so that the data section starts 64-byte aligned.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.canonical import dump_json, load_json
from llgbm_shards.errors import HeaderError
from llgbm_shards.storage import IrregularError, opened_file, read_range

T = TypeVar("T")
#: Bits per element of the dtypes that safetensors knows (2026); sub-byte types are counted in bits.
DTYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
#: How the tensors that this project writes look in numpy; bf16 is uint16 bits.
NUMPY_DTYPE: Final[dict[str, np.dtype[Any]]] = {
    "BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4"),
    "I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1"),
}  # fmt: skip
ALIGNMENT: Final = 64
MAX_HEADER_BYTES: Final = 1 << 20
MAX_DIMENSIONS: Final = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a header: dtype name, shape, and byte extent within the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: tensors by name, the free metadata, and where the data section starts in the file."""

    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]
    data_start: int


def read_head(path: Path) -> tuple[bytes, int]:
    """The bytes of a safetensors file up to its data section (at most 1 MiB of them), and the file's size.

    Raises:
        HeaderError: It is not a regular file; nothing is opened that could block.
        OSError: It cannot be read.
    """
    try:
        with opened_file(path) as fd:
            length = int.from_bytes(read_range(fd, 0, 8), "little")
            return read_range(fd, 0, 8 + min(length, MAX_HEADER_BYTES)), os.fstat(fd).st_size
    except IrregularError as error:
        raise HeaderError("not a regular file", where=path.name) from error


def parse_header(head: bytes | memoryview, file_size: int, *, where: str = "safetensors") -> Header:
    """Check a header strictly, in bounded time and memory.

    Args:
        head: The file's first bytes: all of it, or at least the header.
        file_size: Bytes of the whole file; the extents must fill it exactly.
        where: Name for messages.

    Raises:
        HeaderError: Truncated, over 1 MiB, not JSON, duplicate keys, unknown dtype, absurd dimensions,
            overlapping extents, holes, or a file longer or shorter than the extents say.
    """
    if len(head) < 8:
        got = f"{len(head)} bytes"
        raise HeaderError("truncated safetensors file", where=where, expected="8 bytes", got=got)
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        expected = f"at most {MAX_HEADER_BYTES} bytes"
        raise HeaderError("safetensors header too long", where=where, expected=expected, got=f"{length}")
    if 8 + length > min(file_size, len(head)):
        expected = f"{8 + length} bytes of header"
        raise HeaderError("truncated safetensors file", where=where, expected=expected, got=f"{file_size}")
    fields = load_json(bytes(head[8 : 8 + length]), where=where, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(fields, dict):
        raise HeaderError("safetensors header is not an object", where=where)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("__metadata__ is not a map of strings", where=where)
    tensors = {name: _spec(name, row, where) for name, row in fields.items()}
    _check_extents(tensors, file_size - 8 - length, where)
    return Header(tensors, metadata, 8 + length)


def _spec(name: str, row: Any, where: str) -> TensorSpec:
    """One row of the header, checked; sizes are exact integers, so nothing can overflow."""
    place = f"{where}: {name[:200]}"
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError("malformed tensor entry", where=place, expected="dtype, shape and data_offsets")
    dtype, shape, extent = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError("unknown dtype", where=place, got=f"{dtype!r:.40}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError("malformed shape", where=place, got=f"{shape!r:.80}")
    if not _sizes(extent) or len(extent) != 2:
        raise HeaderError("malformed data_offsets", where=place, got=f"{extent!r:.80}")
    bits = DTYPE_BITS[dtype] * math.prod(shape)
    if bits % 8 or extent[1] - extent[0] != bits // 8:
        what, expected = "extent does not fit dtype and shape", f"{bits / 8:g} bytes"
        raise HeaderError(what, where=place, expected=expected, got=f"{extent!r:.60}")
    return TensorSpec(dtype, tuple(shape), extent[0], extent[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_extents(tensors: Mapping[str, TensorSpec], data_bytes: int, where: str) -> None:
    position = 0
    for name, spec in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if spec.start != position:
            place, expected = f"{where}: {name[:200]}", f"start at {position}"
            raise HeaderError(
                "tensors overlap or leave a hole", where=place, expected=expected, got=f"{spec.start}"
            )
        position = spec.end
    if position != data_bytes:
        kind = "truncated" if data_bytes < position else "trailing bytes after the data"
        raise HeaderError(kind, where=where, expected=f"{position} bytes of data", got=f"{data_bytes}")


def _in_order(tensors: Mapping[str, tuple[str, T]]) -> list[tuple[str, tuple[str, T]]]:
    """Tensors given as name -> (dtype name, anything), in the order of their data."""
    return sorted(tensors.items(), key=lambda item: (-DTYPE_BITS[item[1][0]], item[0]))


def header_bytes(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The canonical header of tensors given as name -> (dtype name, shape)."""
    rows: dict[str, dict[str, Any]] = {}
    position = 0
    for name, (dtype, shape) in _in_order(specs):
        size = DTYPE_BITS[dtype] // 8 * math.prod(shape)
        rows[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = dump_json(rows).rstrip(b"\n")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def encode_arrays(arrays: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    """A canonical safetensors file of small arrays given as name -> (dtype name, array)."""
    head = header_bytes({name: (dtype, array.shape) for name, (dtype, array) in arrays.items()})
    data = (
        np.ascontiguousarray(array, NUMPY_DTYPE[dtype]).tobytes() for _, (dtype, array) in _in_order(arrays)
    )
    return head + b"".join(data)


def decode_arrays(data: bytes | memoryview, *, where: str) -> dict[str, NDArray[Any]]:
    """Arrays of a canonical safetensors file, as views on ``data``.

    Raises:
        HeaderError: The bytes are not exactly the canonical form.
    """
    view = memoryview(data)
    header = parse_header(view, len(view), where=where)
    specs = {name: (spec.dtype, spec.shape) for name, spec in header.tensors.items()}
    if header.metadata or bytes(view[: header.data_start]) != header_bytes(specs):
        raise HeaderError("header is not in canonical form", where=where)
    arrays: dict[str, NDArray[Any]] = {}
    for name, spec in header.tensors.items():
        if spec.dtype not in NUMPY_DTYPE:
            raise HeaderError("dtype has no place in a sample", where=f"{where}: {name}", got=spec.dtype)
        raw = view[header.data_start + spec.start : header.data_start + spec.end]
        arrays[name] = np.frombuffer(raw, NUMPY_DTYPE[spec.dtype]).reshape(spec.shape)
    return arrays
