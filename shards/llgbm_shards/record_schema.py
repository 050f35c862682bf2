"""Types and bounds of the fields of ``shardset.json``: a record may be canonical and still be hostile.

File names come from data and become paths, numbers become sizes of allocations; so both are bounded here, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from llgbm_shards.errors import HeaderError
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import DIGEST, SHARD
from llgbm_shards.texts import ConditionSpec

_LARGEST: Final = 1 << 62
_WIDEST: Final = 1 << 31
_MOST_MODULES: Final = 1 << 17
#: A member takes a header block and a data block at least.
_LEAST_MEMBER_BYTES: Final = 1024

#: Field -> type, or (type, lowest, highest) of an integer.
Shape = Mapping[str, type | tuple[type, int, int]]
_RECORD: Final[Shape] = {
    "format": str,
    "options": dict,
    "dtype": str,
    "rank": (int, 1, _WIDEST),
    "chunk": (int, 1, _WIDEST),
    "token_order": str,
    "members": list,
    "modules": list,
    "texts": dict,
    "delta_width": (int, 0, _WIDEST),
    "shards": list,
    "files": list,
}
_MODULE: Final[Shape] = {
    "name": str,
    "layer": (int, -1, _WIDEST),
    "in": (int, 1, _WIDEST),
    "out": (int, 1, _WIDEST),
    "first_token": (int, 0, _LARGEST),
    "tokens_a": (int, 1, _WIDEST),
    "tokens_b": (int, 1, _WIDEST),
}
_SHARD: Final[Shape] = {
    "name": str,
    "split": str,
    "samples": (int, 1, _LARGEST),
    "size": (int, 1, _LARGEST),
    "digest": str,
}
_FILE: Final[Shape] = {"name": str, "size": (int, 0, _LARGEST), "digest": str}


def check_record(fields: Any) -> None:
    """Refuse a record with missing, unknown or mistyped fields, or with names that lead out of the set.

    Raises:
        HeaderError: Says which field.
    """
    _shape(fields, _RECORD, "record")
    if len(fields["modules"]) > _MOST_MODULES:
        _refuse("too many modules", "modules", f"at most {_MOST_MODULES}", str(len(fields["modules"])))
    for number, row in enumerate(fields["modules"]):
        _shape(row, _MODULE, f"modules[{number}]")
    for number, row in enumerate(fields["shards"]):
        _shape(row, _SHARD, f"shards[{number}]")
        most = row["size"] // (_LEAST_MEMBER_BYTES * max(len(fields["members"]), 1))
        if row["samples"] > most:
            _refuse("more samples than fit", f"shards[{number}]", f"at most {most}", str(row["samples"]))
        if not SHARD.fullmatch(row["name"]) or row["name"].rpartition("-")[0] != row["split"]:
            _refuse(
                "not the name of a shard of its split", f"shards[{number}]", "SPLIT-NNNNNN.tar", row["name"]
            )
    for number, row in enumerate(fields["files"]):
        _shape(row, _FILE, f"files[{number}]")
        if not _inside(row["name"]):
            _refuse("not a path inside the set", f"files[{number}]", "a relative POSIX path", row["name"])
    _entries([*fields["shards"], *fields["files"]])
    _members(fields)


def _shape(row: Any, shape: Shape, where: str) -> None:
    if not isinstance(row, dict) or set(row) != set(shape):
        got = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        _refuse("other fields than the format has", where, ", ".join(shape), got)
    for name, wanted in shape.items():
        kind, *bounds = wanted if isinstance(wanted, tuple) else (wanted,)
        value = row[name]
        # bool is an int to isinstance, but not to JSON.
        if type(value) is not kind:
            _refuse("another type", f"{where}.{name}", kind.__name__, type(value).__name__)
        if bounds and not bounds[0] <= value <= bounds[1]:
            _refuse("out of range", f"{where}.{name}", f"{bounds[0]} to {bounds[1]}", str(value))


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name == path.as_posix() and name.isprintable() and not path.is_absolute() and ".." not in path.parts
    )


def _entries(rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["name"] for row in rows]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        _refuse("a file listed twice", "shards and files", "each once", twice)
    for row in rows:
        if not DIGEST.fullmatch(row["digest"]):
            _refuse("not a digest", row["name"], "64 lowercase hex digits", row["digest"])


def _members(fields: Mapping[str, Any]) -> None:
    """The member list is some of the known ones in their order, and agrees with texts and delta_width."""
    forms = fields["texts"].get("forms")
    if forms != []:
        ConditionSpec.from_json(fields["texts"], where="texts")
    absent = {"texts"} if forms == [] else set()
    absent |= set() if fields["delta_width"] else {"delta"}
    expected = [name for name in SUFFIX if name not in absent]
    if fields["members"] != expected:
        _refuse("members do not fit texts and delta_width", "members", f"{expected}", f"{fields['members']}")


def _refuse(what: str, where: str, expected: str, got: str) -> None:
    raise HeaderError(what, where=f"{where:.200}", expected=expected, got=f"{got:.120}")
