"""The exact keys and types of a sample's json member, the same in every sample.

Readers of dataset hubs infer a schema from the first samples and corrupt the rest in silence, so there are no
nulls, no empty lists, no optional keys, and fractional fields are always floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llgbm_shards.names import DIGEST

_DTYPES: Final = ("bfloat16", "float16", "float32")
#: Field -> type; a list holds the schema of its items, which are never none.
Schema = Mapping[str, Any]
SCHEMA: Final[Schema] = {
    "checkpoint": str,
    "task": str,
    "base_model": str,
    "rank": int,
    "alpha": float,
    "scaling": float,
    "lora_dropout": float,
    "task_type": str,
    "modules": [{"name": str, "rank": int, "scaling": float}],
    "source_digest": str,
    "source_dtype": str,
    "has_delta": bool,
    "delta": {
        "file": str,
        "norm": float,
        "matched_by": str,
        "base_model": str,
        "probes": str,
        "layer": str,
        "dtype": str,
    },
    "texts": [{"prompt": str, "answer": str}],
    "members": [{"name": str, "size": int, "digest": str}],
}


def schema_faults(info: Any) -> Iterator[str]:
    """What of a parsed json member is not as the format says, with the place in it."""
    faults = list(_faults(info, SCHEMA, "json"))
    yield from faults
    if faults:
        return
    for place, digest in [("source_digest", info["source_digest"]), *_member_digests(info)]:
        if not DIGEST.fullmatch(digest):
            yield f"{place}: expected 64 lowercase hex digits, got {digest!r:.80}"
    if info["source_dtype"] not in _DTYPES:
        yield f"source_dtype: expected one of {', '.join(_DTYPES)}, got {info['source_dtype']!r:.40}"


def _member_digests(info: Any) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(info["members"]):
        yield f"members[{number}].digest", row["digest"]


def _faults(value: Any, schema: Any, place: str) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if not isinstance(value, dict) or set(value) != set(schema):
            got = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            yield f"{place}: expected the keys {', '.join(schema)}, got {got:.400}"
            return
        for name, inner in schema.items():
            yield from _faults(value[name], inner, name if place == "json" else f"{place}.{name}")
    elif isinstance(schema, list):
        if not isinstance(value, list) or not value:
            yield f"{place}: expected a list that is not empty, got {value!r:.80}"
            return
        for number, item in enumerate(value):
            yield from _faults(item, schema[0], f"{place}[{number}]")
    elif type(value) is not schema:  # bool is an int to isinstance, and 16 is no float to readers.
        yield f"{place}: expected {schema.__name__}, got {type(value).__name__} {value!r:.80}"
