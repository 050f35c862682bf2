"""The exact keys, types and bounds of a set's JSON, one table a kind: a file may be canonical and still be hostile.

Readers of dataset hubs infer a schema from the first samples and corrupt the rest in silence, so there are no
nulls, no empty lists, no optional keys in samples, and fractional fields are always floats.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from llgbm_shards.arguments import shown
from llgbm_shards.errors import HeaderError
from llgbm_shards.layout import SAFETENSORS_DTYPE
from llgbm_shards.names import DIGEST, MOST_PARITY, PARITY, SHARD, parity_name

#: A member takes a header block and a data block at least.
_LEAST_MEMBER_BYTES: Final = 1024
_LARGEST: Final = range((1 << 62) + 1)
_WIDE: Final = range(1, (1 << 31) + 1)


class Rows(NamedTuple):
    """A list of items of one schema, so many of them."""

    item: Any
    least: int = 0
    most: int = _LARGEST.stop


class Form(NamedTuple):
    """A text of a pattern, and the pattern in words."""

    pattern: re.Pattern[str]
    words: str


#: A mapping gives the schema of each key, all of which are there; a range is an int in it; a tuple of texts is one of
#: them; a type is a value of just this type.
Schema = Mapping[str, Any]
_DIGEST: Final = Form(DIGEST, "64 lowercase hex digits")
SHARD_ROW: Final[Schema] = {
    "name": str,
    "split": str,
    "samples": _LARGEST[1:],
    "size": _LARGEST[1:],
    "digest": _DIGEST,
}
MODULE: Final[Schema] = {
    "name": str,
    "layer": range(-1, _WIDE.stop),
    "in": _WIDE,
    "out": _WIDE,
    "first_token": _LARGEST,
    "tokens_a": _WIDE,
    "tokens_b": _WIDE,
}
#: ``shardset.json``: its names become paths, its numbers sizes of allocations.
RECORD: Final[Schema] = {
    "format": str,
    "base": Form(re.compile(rf"({DIGEST.pattern})?"), "a digest, or nothing"),
    "options": dict,
    "dtype": str,
    "rank": _WIDE,
    "chunk": _WIDE,
    "token_order": str,
    "members": list,
    "modules": Rows(MODULE, most=1 << 17),
    "texts": dict,
    "delta_width": range(_WIDE.stop),
    "shards": Rows(SHARD_ROW),
    "files": Rows({"name": str, "size": _LARGEST, "digest": _DIGEST}),
}
#: The ``texts`` field of ``shardset.json``, where there are texts.
TEXTS: Final[Schema] = {
    "forms": Rows(str),
    "joiner": str,
    "prefix": Rows(int),
    "suffix": Rows(int),
    "pad_id": int,
    "padding_side": str,
    "truncation_side": str,
    "vocab_size": int,
}
#: A sample's json member.
SAMPLE: Final[Schema] = {
    "checkpoint": str,
    "task": str,
    "base_model": str,
    "rank": int,
    "alpha": float,
    "scaling": float,
    "lora_dropout": float,
    "task_type": str,
    "modules": Rows({"name": str, "rank": int, "scaling": float}, least=1),
    "weights_file": Form(re.compile(r"[^/\0]+\.safetensors"), "the name of a safetensors file"),
    "prompts_task": str,
    "text_source": ("prompts.json", "probes", "texts-dir", "name"),
    "source_digest": _DIGEST,
    "exact": bool,
    "source_dtype": tuple(SAFETENSORS_DTYPE),
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
    "texts": Rows({"prompt": str, "answer": str}, least=1),
    "members": Rows({"name": str, "size": int, "digest": _DIGEST}, least=1),
}


class Fault(NamedTuple):
    """What is not as the schema says, and where."""

    what: str
    place: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.place}: expected {self.expected}, got {self.got}"


def faults(value: Any, schema: Any, place: str, prefix: str | None = None) -> Iterator[Fault]:
    """What of parsed JSON is not as its schema says; it is called ``place``, its keys ``prefix`` (or ``place.``) and key."""
    if isinstance(schema, Mapping):
        if not isinstance(value, dict) or set(value) != set(schema):
            got = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            keys = f"the keys {', '.join(schema)}"
            yield Fault("other fields than the format has", place, keys, f"{got:.400}")
            return
        for name, inner in schema.items():
            if type(value[name]) is not inner:  # Most are: it saves a call.
                yield from faults(value[name], inner, f"{place}.{name}" if prefix is None else prefix + name)
    elif isinstance(schema, Rows):
        if type(value) is not list or not schema.least <= len(value) <= schema.most:
            yield _no_list(value, schema, place)
            return
        for number, item in enumerate(value):
            yield from faults(item, schema.item, f"{place}[{number}]")
    else:
        yield from _leaf_faults(value, schema, place)


def _no_list(value: Any, schema: Rows, place: str) -> Fault:
    if type(value) is list and value:
        return Fault("too many", place, f"at most {schema.most}", f"{len(value)}")
    got = "[]" if value == [] else _described(value)
    return Fault("no such list", place, f"a list{' that is not empty' if schema.least else ''}", got)


def _described(value: Any) -> str:
    kind = type(value).__name__
    return kind if isinstance(value, list | dict) else f"{kind} {shown(value)[:80]}"


def _leaf_faults(value: Any, schema: Any, place: str) -> Iterator[Fault]:
    kind = {range: int, Form: str, tuple: str}.get(type(schema), schema)
    if type(value) is not kind:  # bool is an int to isinstance, and 16 is no float to readers.
        yield Fault("another type", place, kind.__name__, _described(value))
    elif isinstance(schema, range) and value not in schema:
        yield Fault("out of range", place, f"{schema.start} to {schema.stop - 1}", shown(value)[:40])
    elif isinstance(schema, Form) and not schema.pattern.fullmatch(value):
        yield Fault("of another form", place, schema.words, f"{value!r:.80}")
    elif type(schema) is tuple and value not in schema:
        yield Fault("unknown", place, f"one of {', '.join(schema)}", f"{value!r:.40}")


def refuse_faults(value: Any, schema: Schema, place: str, prefix: str | None = None) -> None:
    """Refuse what is not as its schema says; arguments as of :func:`faults`.

    Raises:
        HeaderError: Says the first fault.
    """
    for fault in faults(value, schema, place, prefix):
        raise HeaderError(fault.what, where=fault.place, expected=fault.expected, got=fault.got)


def check_record(fields: dict[str, Any]) -> None:
    """Refuse what no build writes: other fields or types, names that lead out of the set, more than fits.

    Raises:
        HeaderError: Says which field.
    """
    refuse_faults(fields, RECORD, "record", "")
    for number, row in enumerate(fields["shards"]):
        most = row["size"] // (_LEAST_MEMBER_BYTES * max(len(fields["members"]), 1))
        if row["samples"] > most:
            raise _impossible("more samples than fit", f"shards[{number}]", f"at most {most}", row["samples"])
        if not SHARD.fullmatch(row["name"]) or row["name"].rpartition("-")[0] != row["split"]:
            what = "not the name of a shard of its split"
            raise _impossible(what, f"shards[{number}]", "SPLIT-NNNNNN.tar", row["name"])
    for number, row in enumerate(fields["files"]):
        if not _inside(row["name"]):
            what, expected = "not a path inside the set", "a relative POSIX path"
            raise _impossible(what, f"files[{number}]", expected, row["name"])
    counts = Counter(row["name"] for row in (*fields["shards"], *fields["files"]))
    groups = fields["options"].get("parity", 0)
    if type(groups) is not int or not 0 <= groups <= MOST_PARITY:
        raise _impossible("no such parity", "options", f"0 to {MOST_PARITY}", groups)
    parities = {row["name"] for row in fields["files"] if PARITY.fullmatch(row["name"])}
    own = {parity_name(row["name"]) for row in fields["shards"]} if groups else set()
    if other := parities ^ own:
        raise _impossible("parity files of other shards", "files", "one a shard, with parity", min(other))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise _impossible("a file listed twice", "shards and files", "each once", twice[0])


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name == path.as_posix() and name.isprintable() and not path.is_absolute() and ".." not in path.parts
    )


def _impossible(what: str, where: str, expected: str, got: object) -> HeaderError:
    return HeaderError(what, where=where, expected=expected, got=f"{got!s:.120}")
