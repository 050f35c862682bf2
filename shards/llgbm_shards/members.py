"""The sample codec: one packed checkpoint as the members of a tar that share a key.

Member order, names and contents are DESIGN.md's section "The set on disk"; FORMAT.md spells them out for
other readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_shards.canonical import dump_json
from llgbm_shards.errors import HeaderError
from llgbm_shards.layout import BIT_DTYPE, SAFETENSORS_DTYPE, Layout
from llgbm_shards.npy import decode_npy, encode_npy, npy_header
from llgbm_shards.tensors import decode_arrays, encode_arrays, header_bytes
from llgbm_shards.texts import RaggedTexts

#: Fields in the order of their members in the tar, with the suffix of the member's name after ``key.``.
SUFFIX: Final = {
    "pieces": "pieces.safetensors",
    "scales": "scales.npy",
    "texts": "texts.safetensors",
    "delta": "delta.npy",
    "source": "source.safetensors",
    "json": "json",
}
#: What a key may look like; it names files in a tar, so nothing else is let in from data.
MAX_KEY_LENGTH: Final = 69
KEY: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}")
_READABLE_LENGTH: Final = MAX_KEY_LENGTH - 9  # a dash and eight digits follow
#: Few enough bytes to stay in a processor's second-level cache from one digest to the other.
_DIGESTED_AT_ONCE: Final = 256 << 10
Buffer = bytes | bytearray | memoryview


def sample_key(path: str) -> str:
    """The key of a checkpoint by its POSIX path in the zoo: readable, unique, free of dots, where WebDataset cuts keys."""
    readable = re.sub(r"[^A-Za-z0-9_]", "-", path).lstrip("-_")[:_READABLE_LENGTH] or "root"
    return f"{readable}-{blake3(path.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class EncodedMember:
    """One member ready to be written, with the digests of exactly the buffers that are written."""

    field: str  # a key of SUFFIX
    parts: tuple[Buffer, ...]  # buffers whose concatenation is the member
    size: int  # bytes in all
    blake3: bytes  # BLAKE3-256, 32 bytes
    xxh3_64: int  # for the loader's verification at full speed

    def to_json(self) -> dict[str, Any]:
        """The member's row in the sample's json."""
        return {"name": SUFFIX[self.field], "size": self.size, "digest": self.blake3.hex()}


def encode_member(field: str, *parts: Buffer) -> EncodedMember:
    """Digest the buffers of a member; nothing is copied."""
    strong, fast = blake3(), xxhash.xxh3_64()
    size = 0
    for view in (memoryview(part).cast("B") for part in parts if len(part)):
        size += len(view)
        for start in range(0, len(view), _DIGESTED_AT_ONCE):
            piece = view[start : start + _DIGESTED_AT_ONCE]
            strong.update(piece)
            fast.update(piece)
    return EncodedMember(field, parts, size, strong.digest(), fast.intdigest())


def pieces_header(layout: Layout) -> bytes:
    """The safetensors header that the pieces of every sample start with; its length is a multiple of 64."""
    return header_bytes({"pieces": (SAFETENSORS_DTYPE[layout.dtype], layout.pieces_shape)})


def encode_pieces(pieces: NDArray[Any], layout: Layout) -> EncodedMember:
    """The pieces member from the pieces' bits, (N, r, chunk) uint16 or uint32, C-contiguous."""
    _expect(pieces, layout.pieces_shape, np.dtype(BIT_DTYPE[layout.dtype]), "pieces")
    return encode_member("pieces", pieces_header(layout), pieces.reshape(-1).view(np.uint8).data)


def encode_scales(scales: NDArray[np.float32], layout: Layout) -> EncodedMember:
    """The scales member from (N, 2) float32."""
    _expect(scales, (layout.num_tokens, 2), np.dtype("<f4"), "scales")
    return encode_member("scales", encode_npy(scales))


def encode_texts(texts: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]]) -> EncodedMember:
    """The texts member from form -> (ids (total,) int32, offsets (n+1,) int64)."""
    arrays: dict[str, tuple[str, NDArray[Any]]] = {}
    for form, (ids, offsets) in texts.items():
        arrays |= {f"{form}.ids": ("I32", ids), f"{form}.offsets": ("I64", offsets)}
    return encode_member("texts", encode_arrays(arrays))


def encode_delta(delta: NDArray[np.float32]) -> EncodedMember:
    """The delta member from (hidden,) float32."""
    return encode_member("delta", encode_npy(delta))


def encode_source(header: Buffer, config: Buffer) -> EncodedMember:
    """The source member: what a weights file holds besides its values, so that it can be written again byte for byte.

    Args:
        header: The file's first bytes, header length and safetensors header, as they stand.
        config: Its adapter_config.json as it stands; empty where there is none.
    """
    parts = {"header": header, "config": config}
    arrays = {name: ("U8", np.frombuffer(part, np.uint8)) for name, part in parts.items()}
    return encode_member("source", encode_arrays(arrays))


def encode_json(info: Mapping[str, Any], others: Sequence[EncodedMember]) -> EncodedMember:
    """The json member: what is known of the checkpoint, plus sizes and digests of the other members."""
    return encode_member("json", dump_json({**info, "members": [member.to_json() for member in others]}))


def decode_pieces(data: Buffer, layout: Layout, *, where: str) -> NDArray[Any]:
    """The pieces' bits (N, r, chunk), a view on ``data``.

    Raises:
        HeaderError: The member does not hold pieces of this layout.
    """
    head = pieces_header(layout)
    view = memoryview(data)
    if len(view) != len(head) + layout.pieces_bytes or view[: len(head)] != head:
        expected = f"{layout.dtype} {layout.pieces_shape}"
        raise HeaderError("not pieces of this set's layout", where=where, expected=expected)
    return np.frombuffer(view[len(head) :], BIT_DTYPE[layout.dtype]).reshape(layout.pieces_shape)


def decode_scales(data: Buffer, layout: Layout, *, where: str) -> NDArray[np.float32]:
    """The scales (N, 2), a view on ``data``."""
    return decode_npy(memoryview(data), (layout.num_tokens, 2), where=where)


def decode_delta(data: Buffer, width: int, *, where: str) -> NDArray[np.float32]:
    """The delta (width,), a view on ``data``."""
    return decode_npy(memoryview(data), (width,), where=where)


def decode_source(data: Buffer, *, where: str) -> tuple[bytes, bytes]:
    """The source file's header and config, see :func:`encode_source`.

    Raises:
        HeaderError: The member holds something else.
    """
    arrays = decode_arrays(memoryview(data), where=where)
    shapes = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if shapes != dict.fromkeys(("header", "config"), (np.dtype(np.uint8), 1)):
        raise HeaderError("not a source's header and config", where=where, got=f"{sorted(arrays)}")
    return arrays["header"].tobytes(), arrays["config"].tobytes()


def decode_texts(
    data: Buffer, forms: Sequence[str], *, where: str
) -> dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Form -> (ids, offsets), views on ``data``.

    Raises:
        HeaderError: Other tensors, or what :meth:`RaggedTexts.checked` refuses.
    """
    arrays = decode_arrays(memoryview(data), where=where)
    if set(arrays) != {f"{form}.{part}" for form in forms for part in ("ids", "offsets")}:
        what, expected = "texts do not hold the set's forms", ", ".join(forms)
        raise HeaderError(what, where=where, expected=expected, got=f"{sorted(arrays)}")
    texts = {}
    for form in forms:
        ids, offsets = arrays[f"{form}.ids"], arrays[f"{form}.offsets"]
        RaggedTexts.checked(ids, offsets, where=f"{where} {form}")
        texts[form] = (ids, offsets)
    return texts


def fixed_sizes(layout: Layout, delta_width: int) -> dict[str, int]:
    """Bytes of the members whose size the layout fixes."""
    return {
        "pieces": len(pieces_header(layout)) + layout.pieces_bytes,
        "scales": len(npy_header((layout.num_tokens, 2))) + 8 * layout.num_tokens,
        "delta": len(npy_header((delta_width,))) + 4 * delta_width,
    }


def _expect(array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        expected, got = f"{dtype} {shape}", f"{array.dtype} {array.shape}"
        raise HeaderError("array does not fit the layout", where=name, expected=expected, got=got)
