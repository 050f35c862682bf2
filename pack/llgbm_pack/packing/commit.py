"""Commit a set: index, skipped list, dataset card, and last of all the commit record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llgbm_pack.packing.card import dataset_card
from llgbm_pack.packing.shard_record import ShardRecord
from llgbm_pack.plan.plan import Plan
from llgbm_pack.plan.survey import Skip
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.index import encode_index, index_columns
from llgbm_shards.names import CARD_NAME, INDEX_NAME, RECORD_NAME, SKIPPED_NAME, TOKENIZER_DIRECTORY
from llgbm_shards.record import CommitRecord, FileEntry, ShardEntry, parse_record
from llgbm_shards.storage import read_file, write_file


def commit_set(plan: Plan, records: Sequence[ShardRecord], skipped: Sequence[Skip]) -> CommitRecord:
    """Write what makes a directory of shards a set; the last write of all finishes it.

    Args:
        plan: The plan the shards were packed for.
        records: One record per job, in the plan's order.
        skipped: Every checkpoint not packed.

    Raises:
        StorageError: Something cannot be written; the set stays unfinished and can be resumed.
    """
    context = plan.context
    bare = CommitRecord(
        layout=context.layout,
        members=context.members,
        texts=context.conditions.to_json() if context.conditions else {"forms": []},
        delta_width=context.delta_width,
        options=plan.options.content(),
        shards=tuple(_shard_entry(shard) for shard in records if shard.rows),
        files=(),
    )
    # Row order is the sample number: shards in the plan's order, samples in tar order.
    rows = index_columns((row for record in records for row in record.rows), context.members)
    index = encode_index(rows, context.members, bare.about())
    files = [
        _put(context.out, INDEX_NAME, index),
        _put(context.out, SKIPPED_NAME, skipped_json(skipped)),
        *tokenizer_files(context.out),
    ]
    record = replace(bare, files=tuple(sorted(files, key=lambda entry: entry.name)))
    write_file(context.out / CARD_NAME, dataset_card(record).encode())
    data = record.to_bytes()
    write_file(context.out / RECORD_NAME, data)
    return parse_record(data)


def _put(out: Path, name: str, data: bytes) -> FileEntry:
    write_file(out / name, data)
    return FileEntry(name=name, size=len(data), digest=blake3_hex(data))


def skipped_json(skipped: Sequence[Skip]) -> bytes:
    """The bytes of ``skipped.json``."""
    return dump_json({"skipped": [asdict(skip) for skip in skipped]})


def tokenizer_files(out: Path) -> list[FileEntry]:
    """The entries of the text tokenizer's files that are there."""
    entries = []
    for path in sorted((out / TOKENIZER_DIRECTORY).rglob("*")):
        if path.is_file():
            data = read_file(path)
            name = path.relative_to(out).as_posix()
            entries.append(FileEntry(name=name, size=len(data), digest=blake3_hex(data)))
    return entries


def _shard_entry(record: ShardRecord) -> ShardEntry:
    return ShardEntry(
        name=record.name, split=record.split, samples=len(record.rows), size=record.size, digest=record.digest
    )
