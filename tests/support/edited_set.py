"""Write a set anew with other member bytes, everything about them consistent: digests, index, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llgbm_shards import ShardSet, ustar
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.index import encode_index
from llgbm_shards.members import SUFFIX, encode_member
from llgbm_shards.names import INDEX_NAME, RECORD_NAME
from llgbm_shards.record import shard_digest

Members = dict[str, bytes]


def rewrite(
    path: Path,
    edit: Callable[[str, Members], Members],
    *,
    columns: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
    relist: bool = True,
) -> None:
    """Rewrite a set in place.

    Args:
        path: The set.
        edit: (key, member bytes by field) to the new member bytes by field.
        columns: Changes a row of the index.
        relist: Put the sizes and digests of the new members into the json.
    """
    opened = ShardSet(path)
    fields = json.loads((path / RECORD_NAME).read_bytes())
    table = opened.index().to_pylist()
    rows: dict[str, list[Any]] = {name: [] for name in opened.index().column_names}
    number = 0
    for entry in fields["shards"]:
        raw, lines = b"", []
        for _ in range(entry["samples"]):
            row = table[number]
            data = {extent.field: opened.read_member(extent) for extent in opened.extents(number)}
            data = edit(row["key"], data)
            if relist:
                data["json"] = _relisted(data)
            row["offset"] = len(raw)
            for field in opened.record.members:
                member = encode_member(field, data[field])
                name = f"{row['key']}.{SUFFIX[field]}"
                raw += ustar.header(name, member.size) + data[field] + bytes(ustar.padding(member.size))
                row |= {
                    f"{field}.size": member.size,
                    f"{field}.blake3": member.blake3,
                    f"{field}.xxh3_64": member.xxh3_64,
                }
                lines.append((name, member.size, member.blake3.hex()))
            for name, value in columns(row).items():
                rows[name].append(value)
            number += 1
        raw += ustar.END
        (path / entry["name"]).write_bytes(raw)
        entry["size"], entry["digest"] = len(raw), shard_digest(lines)
    index = encode_index(rows, opened.record.members)
    (path / INDEX_NAME).write_bytes(index)
    for file in fields["files"]:
        if file["name"] == INDEX_NAME:
            file["size"], file["digest"] = len(index), blake3_hex(index)
    del fields["digest"]
    (path / RECORD_NAME).write_bytes(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))


def _relisted(data: Members) -> bytes:
    info = json.loads(data["json"])
    info["members"] = [
        {"name": SUFFIX[field], "size": len(raw), "digest": blake3_hex(raw)}
        for field, raw in data.items()
        if field != "json"
    ]
    return dump_json(info)
