"""Restore a set's other files: commit record, index, skipped list, tokenizer; each only when its digest proves it."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
from blake3 import blake3

from llgbm_pack.packing.commit import file_entry, skipped_json, tokenizer_files
from llgbm_pack.packing.sample_json import columns
from llgbm_pack.plan.values import Skip
from llgbm_pack.tokenize.conditions import save_tokenizer
from llgbm_pack.upkeep.repair_shards import RepairOptions, ShardRestorer
from llgbm_shards import ustar
from llgbm_shards.canonical import blake3_hex, xxh3
from llgbm_shards.errors import DamageError, HeaderError, LlgbmError, RepairError, StorageError
from llgbm_shards.extents import row_extents
from llgbm_shards.index import decode_index, encode_index, index_about, index_columns, refuse_many_rows
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import INDEX_NAME, RECORD_NAME, SKIPPED_NAME, TOKENIZER_DIRECTORY, parity_name
from llgbm_shards.record import MAX_RECORD_BYTES, CommitRecord, FileEntry, ShardEntry, record_of, shard_digest
from llgbm_shards.recover import recover_samples
from llgbm_shards.skipped import MAX_SKIPPED_BYTES, skipped_checkpoints
from llgbm_shards.storage import opened_file, read_file, read_range, refuse_link, storage_errors, write_file

#: Far above an index of millions of samples; what is larger is not read to find out.
_MAX_INDEX_BYTES: Final = 4 << 30
_DIGEST_BYTES: Final = 32
_CHUNK: Final = 1 << 20


def restore_record(options: RepairOptions) -> CommitRecord:
    """Put a lost or damaged commit record back, from the index, which carries its fields and all digests.

    Proof is the digest that the caller pinned, or the one that stands in what is left of the damaged record. A
    RepairError when the index is damaged as well, or nothing proves that the result is what was committed.
    """
    out = options.out
    try:
        record = _record_from_index(out)
    except LlgbmError as error:
        raise RepairError("cannot be rebuilt", where=RECORD_NAME, got=str(error)) from error
    if options.expect_digest is None and record.digest.encode() not in _left(out / RECORD_NAME):
        raise RepairError(
            "cannot be proven to be what was committed",
            where=RECORD_NAME,
            expected="--expect-digest, as printed by the build",
            do=f"What the other files give has the digest {record.digest}.",
        )
    if options.expect_digest not in (None, record.digest):
        raise RepairError(
            "the other files are not those of the expected set",
            where=RECORD_NAME,
            expected=f"digest {options.expect_digest}",
            got=record.digest,
            do=f"Restore {INDEX_NAME}, {SKIPPED_NAME}, the tokenizer and parity files from a copy first.",
        )
    write_file(out / RECORD_NAME, record.to_bytes())
    return record


def _left(path: Path) -> bytes:
    """What is left of a damaged file; nothing when it is gone or no such file could be."""
    try:
        return read_file(path, max_bytes=MAX_RECORD_BYTES)
    except StorageError:
        return b""


def _record_from_index(out: Path) -> CommitRecord:
    data = read_file(out / INDEX_NAME, max_bytes=_MAX_INDEX_BYTES)
    about = index_about(data)
    fields = [str(field) for field in about["members"]]
    if not set(fields) <= set(SUFFIX):
        raise DamageError("unknown members", shard=INDEX_NAME, got=f"{fields!r:.80}")
    # Digests do not compress, and no two json members are equal: fewer bytes than this a row are no index.
    refuse_many_rows(data, len(data) // _DIGEST_BYTES)
    rows = decode_index(data, fields).to_pylist()
    skipped = read_file(out / SKIPPED_NAME, max_bytes=MAX_SKIPPED_BYTES)
    files = [file_entry(INDEX_NAME, data), file_entry(SKIPPED_NAME, skipped), *tokenizer_files(out)]
    shards = _shards(rows, fields)
    options = about.get("options")
    if isinstance(options, dict) and options.get("parity"):
        files += [_parity_entry(out / parity_name(shard.name)) for shard in shards]
    return record_of(about, shards, files)


def _parity_entry(path: Path) -> FileEntry:
    """The record's entry of a parity file as it stands; it may be larger than memory."""
    digest = blake3()
    with storage_errors(path), opened_file(path) as fd:
        size = os.fstat(fd).st_size
        for offset in range(0, size, _CHUNK):
            digest.update(read_range(fd, offset, min(_CHUNK, size - offset)))
    return FileEntry(name=path.name, size=size, digest=digest.hexdigest())


def _shards(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> list[ShardEntry]:
    """The record's shards: their digests are over digests that the index holds."""
    by_shard: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_shard[row["shard"], row["split"]].append(row)
    entries = []
    for (name, split), group in by_shard.items():
        extents = [extent for row in group for extent in row_extents(dict(row), fields)]
        end = extents[-1].offset + ustar.padded(extents[-1].size) + len(ustar.END)
        digest = shard_digest((extent.name, extent.size, extent.blake3) for extent in extents)
        entries.append(ShardEntry(name=name, split=split, samples=len(group), size=end, digest=digest))
    return entries


def restore_tokenizer_file(
    options: RepairOptions, entry: FileEntry, saved: Callable[[str], Mapping[str, bytes]]
) -> None:
    """Put a damaged file of the text tokenizer back: what :func:`saved_tokenizer` gives of that name.

    Raises:
        RepairError: No tokenizer was given, or it is another one.
        StorageError: It cannot be written, or would be written through a link, to anywhere.
    """
    path = options.out / entry.name
    for parent in PurePosixPath(entry.name).parents[:-1]:
        refuse_link(options.out / parent)
    if options.text_tokenizer is None:
        what = "a file of the text tokenizer is damaged"
        raise RepairError(what, where=entry.name, expected="--text-tokenizer")
    data = saved(options.text_tokenizer).get(entry.name, b"")
    if file_entry(entry.name, data) != entry:
        what = "another text tokenizer than the set's"
        raise RepairError(what, where=entry.name, got=options.text_tokenizer)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def saved_tokenizer(tokenizer: str) -> dict[str, bytes]:
    """Name in the set -> bytes of each file that a text tokenizer saves."""
    with tempfile.TemporaryDirectory() as directory:
        return {
            f"{TOKENIZER_DIRECTORY}/{path.relative_to(directory).as_posix()}": read_file(path)
            for path in save_tokenizer(tokenizer, Path(directory))
        }


def restore_index(out: Path, record: CommitRecord) -> None:
    """Put the index back, from shards that are all sound; a RepairError when it is not what was committed."""
    try:
        rows = (row for entry in record.shards for row in _rows(out, entry))
        data = encode_index(index_columns(rows, record.members), record.members, record.about())
    except (KeyError, TypeError, HeaderError, pa.ArrowException) as error:
        raise RepairError("the shards do not give an index", where=INDEX_NAME, got=str(error)) from error
    expected = record.file(INDEX_NAME).digest
    if blake3_hex(data) != expected:
        raise RepairError(
            "cannot be proven to be what was committed",
            where=INDEX_NAME,
            expected=f"digest {expected}",
            got=blake3_hex(data),
            do=f"Parquet files name the pyarrow that wrote them: repair with the build's version, not {pa.__version__}.",
        )
    write_file(out / INDEX_NAME, data)


def _rows(out: Path, entry: ShardEntry) -> Iterable[dict[str, Any]]:
    path = out / entry.name
    with storage_errors(path), opened_file(path) as fd:
        shard = recover_samples(fd, entry.name, limit=entry.size)
        for extents, info in zip(shard.samples, shard.infos, strict=True):
            row = {
                "key": extents[0].key,
                "split": entry.split,
                "shard": entry.name,
                "offset": extents[0].offset - ustar.BLOCK,
                **columns(info),
            }
            for extent in extents:
                data = read_range(fd, extent.offset, extent.size)
                row[f"{extent.field}.size"] = extent.size
                row[f"{extent.field}.blake3"] = blake3_hex(data)
                row[f"{extent.field}.xxh3_64"] = xxh3(data)
            yield row


def restore_skipped(out: Path, record: CommitRecord, restorer: ShardRestorer, packed: set[str]) -> None:
    """Put the list of skipped checkpoints back, by planning the zoo anew; that of an overlay is empty.

    Raises:
        RepairError: The zoo now gives another list.
        UsageError: The zoo no longer gives a plan.
    """
    skipped: list[Skip] = []
    if not record.base:
        plan = restorer.plan
        late = [sample for job in plan.jobs for sample in job.samples if sample.path not in packed]
        skipped = [*plan.skipped, *(Skip(sample.path, restorer.skips_again(sample)) for sample in late)]
    data = skipped_json(sorted(skipped, key=lambda skip: skip.checkpoint))
    if blake3_hex(data) != record.file(SKIPPED_NAME).digest:
        raise RepairError(
            "the zoo gives another list than was committed",
            where=SKIPPED_NAME,
            expected=f"digest {record.file(SKIPPED_NAME).digest}",
            got=blake3_hex(data),
            do="Its checkpoints, deltas or texts changed since; `check --against ZOO` tells which.",
        )
    write_file(out / SKIPPED_NAME, data)


def known_skipped(out: Path) -> list[str] | None:
    """Paths in a sound skipped list; None when it cannot be read."""
    try:
        return skipped_checkpoints(read_file(out / SKIPPED_NAME, max_bytes=MAX_SKIPPED_BYTES))
    except LlgbmError:
        return None
