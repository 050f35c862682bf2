"""A weights file again, from its header and the pieces of a sample: every value to the place the header gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.sources.peft_keys import pair_keys
from llgbm_shards.errors import CheckpointError, DamageError, HeaderError
from llgbm_shards.layout import BIT_DTYPE, SAFETENSORS_DTYPE, Layout, Module
from llgbm_shards.members import SUFFIX
from llgbm_shards.tensors import DTYPE_BITS, Header, parse_header

_WHERE = SUFFIX["source"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the two matrices of a module stand in the data section."""

    module: Module
    rank: int
    a: int  # first value of A, counted in values
    b: int  # first value of B


@dataclass(frozen=True, slots=True)
class Blank:
    """A weights file that lacks its values."""

    head: bytes  # its first bytes: length and header
    places: tuple[Place, ...]  # its modules, in the order of the layout
    values: int  # how many values it has
    dtype: str  # of the values, as a layout calls it

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + self.values * _itemsize(self.dtype)

    def fill(self, pieces: NDArray[Any], data: NDArray[np.uint8]) -> None:
        """Put the values of pieces, bits (N, r, chunk), where they belong in the data section ``data``, (bytes,) uint8."""
        values = data.view(BIT_DTYPE[self.dtype])
        for place in self.places:
            module, rank = place.module, place.rank
            first_b = module.first_token + module.tokens_a
            sides = self.sides(place, values)
            _join(pieces[module.first_token : first_b, :rank], sides[0])
            _join(pieces[first_b : first_b + module.tokens_b, :rank], sides[1].T)

    def sides(self, place: Place, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """A (rank, in) and B (out, rank) of a module, views of the file's values."""
        module, rank = place.module, place.rank
        a = values[place.a : place.a + rank * module.in_features]
        b = values[place.b : place.b + rank * module.out_features]
        return a.reshape(rank, module.in_features), b.reshape(module.out_features, rank)


def blank_of(head: bytes, info: Mapping[str, Any], layout: Layout) -> Blank:
    """The weights file of a sample without its values; of one that was cast, a file in the layout's dtype.

    Args:
        head: The source file's first bytes, as the sample has them.
        info: The sample's json.
        layout: The layout of the set.

    Raises:
        DamageError: Header, json and layout are not of one file.
    """
    ranks = tuple((row["name"], row["rank"]) for row in info["modules"] if row["rank"])
    return _blank(head, ranks, info["source_dtype"], layout)


# Most adapters of a zoo have the same header: parsing it takes longer than copying some megabytes.
@lru_cache(maxsize=16)
def _blank(head: bytes, ranks: tuple[tuple[str, int], ...], dtype: str, layout: Layout) -> Blank:
    modules = {module.name: module for module in layout.modules}
    unknown = [name for name, rank in ranks if name not in modules or not 0 < rank <= layout.rank]
    if unknown:
        expected = f"modules of the set, of rank 0 to {layout.rank}"
        raise DamageError("modules that the set does not have", expected=expected, got=f"{unknown[0]:.200}")
    values = sum(rank * (modules[name].in_features + modules[name].out_features) for name, rank in ranks)
    try:
        header = parse_header(head, len(head) + values * _itemsize(dtype), where="header")
        if dtype != layout.dtype:
            head = _recast(header, layout.dtype)
            header = parse_header(head, len(head) + values * _itemsize(layout.dtype), where="header")
        pairs = pair_keys(header.tensors, "header")
    except (HeaderError, CheckpointError) as error:
        raise error.as_(DamageError, f"not the header of the sample's weights file: {error.what}") from error
    if pairs.keys() != {name for name, _ in ranks}:
        raise DamageError("the header names other modules than the sample has")
    rank_of = dict(ranks)
    places = tuple(
        _place(header, modules[name], rank_of[name], pairs[name].a, pairs[name].b, layout.dtype)
        for name in modules
        if name in rank_of
    )
    return Blank(head, places, values, layout.dtype)


def _place(header: Header, module: Module, rank: int, a: str, b: str, dtype: str) -> Place:
    shapes = {a: (rank, module.in_features), b: (module.out_features, rank)}
    for key, shape in shapes.items():
        spec = header.tensors[key]
        if (spec.dtype, spec.shape) != (SAFETENSORS_DTYPE[dtype], shape):
            expected, got = f"{SAFETENSORS_DTYPE[dtype]} {shape}", f"{spec.dtype} {spec.shape}"
            raise DamageError(
                f"the header has another {key:.200} than the sample", expected=expected, got=got
            )
    size = _itemsize(dtype)
    return Place(module, rank, header.tensors[a].start // size, header.tensors[b].start // size)


def _recast(header: Header, dtype: str) -> bytes:
    """The header with the same keys, in the same order, and values of another dtype."""
    rows: dict[str, Any] = {"__metadata__": header.metadata} if header.metadata else {}
    position = 0
    for key, spec in sorted(header.tensors.items(), key=lambda item: item[1].start):
        end = position + (spec.end - spec.start) * _itemsize(dtype) * 8 // DTYPE_BITS[spec.dtype]
        rows[key] = {
            "dtype": SAFETENSORS_DTYPE[dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _join(pieces: NDArray[Any], out: NDArray[Any]) -> None:
    """Pieces (tokens, rank, chunk) of one matrix, side by side in ``out``, (rank, width)."""
    _, rank, chunk = pieces.shape
    full = out.shape[1] // chunk
    end = full * chunk
    # Splitting an axis gives a view.
    out[:, :end].reshape(rank, full, chunk)[...] = pieces[:full].transpose(1, 0, 2)
    if end < out.shape[1]:
        out[:, end:] = pieces[full, :, : out.shape[1] - end]


def _itemsize(dtype: str) -> int:
    return DTYPE_BITS[SAFETENSORS_DTYPE[dtype]] // 8
