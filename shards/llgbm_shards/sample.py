"""A sample as values: its members' bytes, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.canonical import load_json
from llgbm_shards.members import SUFFIX, decode_body, decode_delta, decode_scales, decode_texts
from llgbm_shards.record import CommitRecord

#: Longest json member accepted.
MAX_JSON_BYTES: Final = 96 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded sample; absent fields are None. Arrays are views on the bytes that were read."""

    key: str
    body: NDArray[Any] | None
    scales: NDArray[np.float32] | None
    texts: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] | None
    delta: NDArray[np.float32] | None
    json: dict[str, Any]


def decode_sample(key: str, data: dict[str, bytes], record: CommitRecord) -> Sample:
    """Decode the members of one sample.

    Raises:
        HeaderError: A member is not what the record says it is.
    """
    layout = record.layout
    info = load_json(data["json"], where="json", max_bytes=MAX_JSON_BYTES)
    texts, delta = data.get("texts"), data.get("delta")
    return Sample(
        key=key,
        body=decode_body(data["body"], layout, where=SUFFIX["body"]),
        scales=decode_scales(data["scales"], layout, where=SUFFIX["scales"]),
        texts=None if texts is None else decode_texts(texts, record.texts["forms"], where=SUFFIX["texts"]),
        delta=None if delta is None else decode_delta(delta, record.delta_width, where=SUFFIX["delta"]),
        json=info,
    )
