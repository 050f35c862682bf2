"""Canonical JSON out, strict JSON in, and the digests of the format.

Canonical: UTF-8, sorted keys, compact separators, one newline at the end, no NaN. Strict: bounded size and
nesting, no duplicate keys, no NaN or Infinity, no lone surrogates, nothing after the value.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import accumulate
from typing import Any, Final

import xxhash
from blake3 import blake3

from llgbm_shards.errors import HeaderError

#: Largest nesting of objects and arrays that :func:`load_json` accepts.
MAX_JSON_DEPTH: Final = 64
#: Most values, and so the most memory: ``[[],[],...`` takes 3 bytes a value as text, and 100 when it is parsed.
MAX_JSON_VALUES: Final = 1 << 21
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))


def dump_json(value: Any) -> bytes:
    """Canonical bytes of a JSON value.

    Raises:
        ValueError: The value holds NaN, Infinity or something JSON has no form for.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def load_json(data: bytes, *, where: str, max_bytes: int) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        data: The UTF-8 text.
        where: Name of the file, for the message.
        max_bytes: Longest text accepted.

    Raises:
        HeaderError: Too long, more than two million values, nested deeper than 64, a duplicate key, NaN, a lone
            surrogate, or not JSON at all.
    """
    if len(data) > max_bytes:
        expected, got = f"at most {max_bytes} bytes", f"{len(data)} bytes"
        raise HeaderError("too large", where=where, expected=expected, got=got)
    _check_structure(data, where)
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in data:  # The only way for a surrogate to come in: UTF-8 itself has no form for one.
            _check_text(value)
    except (ValueError, UnicodeError) as error:
        raise HeaderError("not valid JSON", where=where, got=str(error)) from error
    return value


def blake3_hex(data: bytes | bytearray | memoryview) -> str:
    """BLAKE3-256 of a buffer, as 64 lowercase hex digits."""
    return blake3(data).hexdigest()


def xxh3(data: bytes | bytearray | memoryview) -> int:
    """XXH3-64 of a buffer: the loader's fast check of what it reads, not a defence against forgery."""
    return xxhash.xxh3_64_intdigest(data)


def _check_structure(data: bytes, where: str) -> None:
    """Refuse too many values or too deep a nesting, before anything is parsed and without recursion."""
    # Splitting at quotes alternates outside and inside of strings once escapes are out of the way.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = plain.count(b'"')
    # A value is a string at most, with a string for its key: four quotes.
    outside = b"" if quotes > 4 * MAX_JSON_VALUES else b"".join(plain.split(b'"')[::2])
    values = max(quotes // 4, outside.count(b",") + outside.count(b"[") + outside.count(b"{"))
    if values > MAX_JSON_VALUES:
        expected = f"at most {MAX_JSON_VALUES}"
        raise HeaderError("too many values", where=where, expected=expected, got=f"{values} or more")
    steps = (1 if byte in b"{[" else -1 for byte in outside.translate(None, _NO_BRACKETS))
    depth = max(accumulate(steps, initial=0))
    if depth > MAX_JSON_DEPTH:
        expected = f"at most {MAX_JSON_DEPTH} levels"
        raise HeaderError("nested too deeply", where=where, expected=expected, got=f"{depth}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {key[:80]!r}")
    return unique


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """A number as float; 1e999 is valid JSON, but it would come in as Infinity and could not be written again."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond float64")
    return value


def _check_text(value: Any) -> None:
    r"""Refuse lone surrogates: they come from ``\ud800`` escapes and cannot be written as UTF-8 again."""
    json.dumps(value, ensure_ascii=False).encode()
