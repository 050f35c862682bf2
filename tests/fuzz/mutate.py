"""JSON changed as JSON: one place of it is given another value, another key, or another length."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**48, 2**62, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, -0.0, "", "a", "\0",
    "\ud800", "../x", "/etc/passwd", "a" * 5000, "é", "aé/" * 9, "https://u:p@h/x?y", [], [[]], {}, {"a": {}},
    [None], ["a", 1], {"": None}, "(a|a)*b", "lora_A", "train-000000.tar",
)  # fmt: skip
#: Forms that json.dumps has no value for.
_RAW = (
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"1" * 4000,
    b"1" * 5000,
    b'"\\ud800"',
    b"[" * 70 + b"]" * 70,
    b"1.0",
)
_MARK = "<raw form>"


def mutate_json(data: bytes, seed: int) -> bytes | None:
    """The JSON with one to three changes; None when it is no JSON."""
    chance = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = _changed(value, chance)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return text.replace(f'"{_MARK}"'.encode(), chance.choice(_RAW))


def _changed(value: Any, chance: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return _new(chance)
    inside, key = chance.choice(places)
    match chance.randrange(8):
        case 0:
            del inside[key]
        case 1:
            inside[key] = [inside[key]] * chance.choice((1, 2, 30))
        case 2 if isinstance(inside, dict):
            name = chance.choice(
                ("", "a" * 300, "../x", "é", f"{key}2", f"{key}.lora_A.weight", "__metadata__")
            )
            inside[name] = inside.pop(key)
        case 3:  # A value from somewhere else in it.
            other, name = chance.choice(places)
            inside[key] = json.loads(json.dumps(other[name]))
        case 4 if type(inside[key]) is int:
            inside[key] += chance.choice((-1, 1, 2**31, 2**63))
        case _:
            inside[key] = _new(chance)
    return value


def _new(chance: random.Random) -> Any:
    return _MARK if chance.random() < 0.1 else copy.deepcopy(chance.choice(_VALUES))


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def mutate_bytes(data: bytes, seed: int) -> bytes:
    """The bytes with a few of them changed, cut out or repeated."""
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place, count = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 8, 64))
        match chance.randrange(4):
            case 0:
                changed[place : place + count] = chance.randbytes(count)
            case 1:
                changed[place : place + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x30, 0x39))])
            case 2:
                del changed[place : place + count]
            case _:
                changed[place:place] = changed[place : place + count]
    return bytes(changed)
