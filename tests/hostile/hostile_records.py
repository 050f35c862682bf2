"""Commit records and indexes that say impossible things, with every digest in order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llgbm_shards import ShardSet
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.index import index_schema
from llgbm_shards.names import INDEX_NAME, RECORD_NAME

MIB = 1 << 20
NAMES = (
    "pipe:touch evil", "pipe:touch evil #.tar", "http://localhost:1/train-000000.tar", "s3://bucket/a.tar",
    "file:///etc/passwd", "/etc/passwd", "../x.tar", "train-{000000..999999}.tar", "train-000000.tar\x00",
    "train-000000.tar;touch evil", "$(touch evil).tar", "`touch evil`.tar", "a/../../x.tar", "-rf.tar", "",
)  # fmt: skip


def seal(path: Path, fields: dict[str, Any]) -> None:
    """Write a record whose own digest is right."""
    fields = {name: value for name, value in fields.items() if name != "digest"}
    (path / RECORD_NAME).write_bytes(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))


def fields_of(path: Path) -> dict[str, Any]:
    return json.loads((path / RECORD_NAME).read_bytes())


def raw(data: Callable[[], bytes]) -> Callable[[Path], None]:
    """Other bytes in the record's place."""
    return lambda path: path.joinpath(RECORD_NAME).write_bytes(data()) and None


def _not_a_file(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        (path / RECORD_NAME).unlink()
        make(path / RECORD_NAME)

    return spoil


def edited(*place: Any, value: Any) -> Callable[[Path], None]:
    """A sealed record with one field changed."""

    def spoil(path: Path) -> None:
        fields = fields_of(path)
        inner: Any = fields
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        seal(path, fields)

    return spoil


def _many_modules(path: Path) -> None:
    fields = fields_of(path)
    module = fields["modules"][0]
    fields["modules"] = [
        {**module, "first_token": number * 3, "name": f"{number}"} for number in range(140_000)
    ]
    seal(path, fields)


def _huge_module(path: Path) -> None:
    fields = fields_of(path)
    module = {**fields["modules"][0], "first_token": 0, "in": 1 << 30, "out": 1 << 30}
    fields |= {"chunk": 1, "modules": [{**module, "tokens_a": 1 << 30, "tokens_b": 1 << 30}]}
    seal(path, fields)


def with_index(make: Callable[[ShardSet], bytes]) -> Callable[[Path], None]:
    """Another index, and a record that pins it."""

    def spoil(path: Path) -> None:
        data = make(ShardSet(path))
        (path / INDEX_NAME).write_bytes(data)
        fields = fields_of(path)
        for row in fields["files"]:
            if row["name"] == INDEX_NAME:
                row |= {"size": len(data), "digest": blake3_hex(data)}
        seal(path, fields)

    return spoil


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 26)
    return sink.getvalue().to_pybytes()


def _index(opened: ShardSet, **changed: Callable[[list[Any]], list[Any]]) -> bytes:
    columns = opened.index().to_pydict()
    for name, change in changed.items():
        columns[name] = change(columns[name])
    return _parquet(pa.table(columns, schema=index_schema(opened.record.members)))


def _repeated(opened: ShardSet) -> bytes:
    """Some KiB of dictionary-coded rows that are 4 million when they are read."""
    row, rows = opened.index().slice(0, 1), 4_000_000
    arrays = []
    for field in index_schema(opened.record.members):
        value = row.column(field.name).chunk(0)
        indices = pa.array(np.zeros(rows, np.int32))
        arrays.append(
            pa.DictionaryArray.from_arrays(
                indices, value.cast(pa.string()) if field.type == pa.bool_() else value
            )
        )
    names = index_schema(opened.record.members).names
    return _parquet(pa.table(arrays, names=names))


def _long_key(opened: ShardSet) -> bytes:
    """One key of 64 MiB in every row: a small file, for the key is stored once."""
    return _index(opened, key=lambda keys: ["a" * (64 * MIB)] * len(keys))


RECORDS: dict[str, Callable[[Path], None]] = {
    "nested record": raw(lambda: b"[" * 200_000),
    "record of closed brackets": raw(lambda: b"[" + b"[]," * (20 * MIB) + b"[]]"),
    "record of short strings": raw(lambda: b"[" + b'"",' * (20 * MIB) + b'""]'),
    "record of numbers": raw(lambda: b"[" + b"1," * (60 * MIB) + b"1]"),
    "record of quotes": raw(lambda: b'"' * (100 * MIB)),
    "record with a key twice": raw(lambda: b'{"format":"llgbm-shards/1","format":"llgbm-shards/1"}\n'),
    "record over the limit": _not_a_file(
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40)
    ),
    "record that is a named pipe": _not_a_file(os.mkfifo),
    "record that never ends": _not_a_file(lambda path: path.symlink_to("/dev/zero")),
    "record that is a directory": _not_a_file(lambda path: path.mkdir()),
    "pickle for a record": raw(lambda: b"\x80\x04\x95\x1e\x00\x00\x00cos\nsystem\n(S'touch evil'\ntR."),
    "140,000 modules": _many_modules,
    "module of 2**30 tokens": _huge_module,
    "rank of 2**31": edited("rank", value=1 << 31),
    "delta of 2**31": edited("delta_width", value=1 << 31),
    "2**60 samples": edited("shards", 0, "samples", value=1 << 60),
    "shard of 2**60 bytes": edited("shards", 0, "size", value=1 << 60),
    "index of another shard": edited("files", 0, "name", value="../../etc/passwd"),
    **{f"shard named {name!r}": edited("shards", 0, "name", value=name) for name in NAMES},
    **{
        f"file named {name!r}": edited("files", 1, "name", value=name)
        for name in ("../x", "/etc/passwd", "a\nb")
    },
    "index of 4 million rows": with_index(_repeated),
    "index with a long key": with_index(_long_key),
    "index with a negative offset": with_index(lambda s: _index(s, offset=lambda rows: [-512] * len(rows))),
    "index with an offset of 2**62": with_index(lambda s: _index(s, offset=lambda rows: [2**62] * len(rows))),
    "index with a size of 2**62": with_index(
        lambda s: _index(s, **{"pieces.size": lambda rows: [2**62] * len(rows)})
    ),
    "index with a path for a shard": with_index(
        lambda s: _index(s, shard=lambda rows: ["../../../../etc/passwd"] * len(rows))
    ),
    "index with a command for a shard": with_index(
        lambda s: _index(s, shard=lambda rows: ["pipe:touch evil"] * len(rows))
    ),
    "index with a path for a key": with_index(
        lambda s: _index(s, key=lambda rows: [f"../{k}" for k in rows])
    ),
    "index that is no parquet": with_index(
        lambda _: b"PAR1" + bytes(range(256)) * 64 + b"\xff\xff\xff\x7fPAR1"
    ),
    "index that is a pickle": with_index(lambda _: b"\x80\x04cos\nsystem\n(S'touch evil'\ntR."),
}
