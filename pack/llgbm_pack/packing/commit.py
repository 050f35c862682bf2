"""Commit a set: index, skipped list, dataset card, and last of all the commit record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from llgbm_pack.packing.unfinished import ShardRecord
from llgbm_pack.plan.plan import Plan
from llgbm_pack.plan.values import Skip
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.index import encode_index, index_columns
from llgbm_shards.names import (
    CARD_NAME,
    INDEX_NAME,
    RECORD_NAME,
    SKIPPED_NAME,
    TOKENIZER_DIRECTORY,
    parity_name,
)
from llgbm_shards.record import CommitRecord, FileEntry, ShardEntry, parse_record
from llgbm_shards.storage import read_file, write_file

_CARD: Final = """\
---
{config}---
# A shard set of LoRA checkpoints

{samples} checkpoints, pre-tokenized by llgbm-pack: {tokens} tokens of {rank} x {chunk} {dtype} each, modules in
`{order}` order; members of a sample: {members}.

```python
from llgbm_loader import StreamingLoader

for batch in StreamingLoader("path/to/this/directory", batch_size=8):
    ...
```

The shards are plain tar files in WebDataset form, so these read them too:

```python
import webdataset

samples = webdataset.WebDataset("path/to/this/directory/{first}", shardshuffle=False)
```

```python
import datasets

rows = datasets.load_dataset("webdataset", data_files={{"train": "path/to/this/directory/train-*.tar"}},
                             split="train", streaming=True)
```

Check it with `llgbm-check path/to/this/directory`. The format is described in FORMAT.md of llgbm-pack.
"""

_OVERLAY_CARD: Final = """\
---
{config}---
# An overlay of a shard set of LoRA checkpoints

{members} of {samples} checkpoints, made by llgbm-pack for the set with the digest {base}. It has no
weights: those are in that set, which this overlay stands on.

```python
from llgbm_loader import StreamingLoader

for batch in StreamingLoader("path/to/that/set", overlay="path/to/this/directory", batch_size=8):
    ...
```

Check it with `llgbm-check path/to/this/directory`. The format is described in FORMAT.md of llgbm-pack.
"""


def commit_set(plan: Plan, records: Sequence[ShardRecord], skipped: Sequence[Skip]) -> CommitRecord:
    """Write what makes a directory of shards a set; the last write of all finishes it.

    Records are those of the plan's jobs, in its order. What cannot be written leaves a set that can be resumed.
    """
    context = plan.context
    bare = CommitRecord(
        layout=context.layout,
        base=context.base,
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
        *(_parity_entry(shard) for shard in records if shard.parity_size),
    ]
    record = replace(bare, files=tuple(sorted(files, key=lambda entry: entry.name)))
    write_file(context.out / CARD_NAME, _dataset_card(record).encode())
    data = record.to_bytes()
    write_file(context.out / RECORD_NAME, data)
    return parse_record(data)


def _put(out: Path, name: str, data: bytes) -> FileEntry:
    write_file(out / name, data)
    return file_entry(name, data)


def file_entry(name: str, data: bytes) -> FileEntry:
    """The record's entry of a file with these bytes."""
    return FileEntry(name=name, size=len(data), digest=blake3_hex(data))


def skipped_json(skipped: Sequence[Skip]) -> bytes:
    """The bytes of ``skipped.json``."""
    return dump_json({"skipped": [asdict(skip) for skip in skipped]})


def tokenizer_files(out: Path) -> list[FileEntry]:
    """The entries of the text tokenizer's files that are there."""
    paths = sorted(path for path in (out / TOKENIZER_DIRECTORY).rglob("*") if path.is_file())
    return [file_entry(path.relative_to(out).as_posix(), read_file(path)) for path in paths]


def _shard_entry(record: ShardRecord) -> ShardEntry:
    return ShardEntry(
        name=record.name, split=record.split, samples=len(record.rows), size=record.size, digest=record.digest
    )


def _parity_entry(record: ShardRecord) -> FileEntry:
    return FileEntry(name=parity_name(record.name), size=record.parity_size, digest=record.parity_digest)


def _dataset_card(record: CommitRecord) -> str:
    """The card's text; it names no path and no time."""
    splits = dict.fromkeys(shard.split for shard in record.shards)
    rows = [f"      - split: {split}\n        path: {split}-*.tar\n" for split in splits]
    config = "configs:\n  - config_name: default\n    data_files:\n" + "".join(rows)
    card = _OVERLAY_CARD if record.base else _CARD
    return card.format(
        config=config,
        samples=sum(shard.samples for shard in record.shards),
        tokens=record.layout.num_tokens,
        rank=record.layout.rank,
        chunk=record.layout.chunk,
        dtype=record.layout.dtype,
        order=record.layout.token_order,
        members=", ".join(f"`{member}`" for member in record.members),
        base=record.base,
        first=record.shards[0].name if record.shards else "train-000000.tar",
    )
