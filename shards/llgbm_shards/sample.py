"""A sample as values: its members' bytes, decoded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.canonical import load_json
from llgbm_shards.members import (
    SUFFIX,
    decode_delta,
    decode_pieces,
    decode_scales,
    decode_source,
    decode_texts,
)
from llgbm_shards.record import CommitRecord

#: Longest json member accepted.
MAX_JSON_BYTES: Final = 96 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded sample; absent fields are None. Arrays are views on the bytes that were read."""

    key: str
    pieces: NDArray[Any] | None  # bits, (N, r, chunk)
    scales: NDArray[np.float32] | None
    texts: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] | None
    delta: NDArray[np.float32] | None
    source: tuple[bytes, bytes] | None  # header of the weights file, adapter_config.json
    json: dict[str, Any]


def decode_sample(key: str, data: dict[str, bytes], record: CommitRecord) -> Sample:
    """Decode the members of one sample.

    Raises:
        HeaderError: A member is not what the record says it is.
    """
    layout = record.layout
    info = load_json(data["json"], where="json", max_bytes=MAX_JSON_BYTES)
    decoders: dict[str, Callable[..., Any]] = {
        "pieces": functools.partial(decode_pieces, layout=layout),
        "scales": functools.partial(decode_scales, layout=layout),
        "texts": functools.partial(decode_texts, forms=record.texts["forms"]),
        "delta": functools.partial(decode_delta, width=record.delta_width),
        "source": decode_source,
    }
    members = {
        field: decode(data[field], where=SUFFIX[field]) if field in data else None
        for field, decode in decoders.items()
    }
    return Sample(key=key, **members, json=info)
