"""The record of one finished shard, kept in ``.pack/`` until the set is committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from llgbm_pack.plan.survey import Skip
from llgbm_pack.plan.values import InputFile, Note, ShardJob, from_row
from llgbm_shards.canonical import dump_json, load_json
from llgbm_shards.errors import HeaderError, StorageError
from llgbm_shards.names import PACK_DIRECTORY
from llgbm_shards.storage import read_file, write_file

_MAX_RECORD_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What one finished shard holds and what it was made of.

    Attributes:
        name: Its file name.
        split: ``train`` or ``val``.
        plan: Digest of the job it was packed for.
        size: Bytes; 0 when every sample was skipped and no file was written.
        digest: Its shard digest, "" without a file.
        rows: Index rows of its samples, digests as hex.
        skipped: Checkpoints that turned out not to be packable.
        notes: Warnings.
        inputs: Files it was made of, as they were.
        matched_by: Samples by how their delta was found.
        fallbacks: Texts whose prompt stood in for a missing answer.
    """

    name: str
    split: str
    plan: str
    size: int
    digest: str
    rows: tuple[dict[str, Any], ...]
    skipped: tuple[Skip, ...]
    notes: tuple[Note, ...]
    inputs: tuple[InputFile, ...]
    matched_by: dict[str, int]
    fallbacks: int

    def save(self, out: Path) -> None:
        """Write the record durably; from then on the shard counts as finished.

        Raises:
            StorageError: It cannot be written.
        """
        write_file(record_path(out, self.name), dump_json(asdict(self)))


def record_path(out: Path, shard: str) -> Path:
    """Where the record of a shard lies."""
    return out / PACK_DIRECTORY / f"{shard}.json"


def finished_record(out: Path, job: ShardJob) -> ShardRecord | None:
    """The record of a job whose shard need not be packed again, else None.

    It counts when it was made for the same plan, the shard is there in full, and every input still is what it
    was: an input edited since then means packing the shard again.
    """
    path = record_path(out, job.name)
    if not path.exists():
        return None
    try:
        fields = load_json(read_file(path), where=path.name, max_bytes=_MAX_RECORD_BYTES)
        record = _from_json(fields)
    except (HeaderError, KeyError, TypeError):
        return None  # A record that does not parse proves nothing: the shard is packed again.
    shard = out / job.name
    present = shard.stat().st_size if shard.is_file() else 0
    if record.plan != job.digest() or present != record.size:
        return None
    return record if all(source.holds() for source in record.inputs) else None


def load_record(out: Path, job: ShardJob) -> ShardRecord:
    """The record of a shard that has just been packed.

    Raises:
        StorageError: It is not there or not sound any more.
    """
    record = finished_record(out, job)
    if record is None:
        raise StorageError(
            "an input or the shard changed while the build was running",
            where=job.name,
            do="Run the same command again: this shard will be packed again.",
        )
    return record


def _from_json(fields: Mapping[str, Any]) -> ShardRecord:
    return ShardRecord(
        **{
            **fields,
            "rows": tuple(fields["rows"]),
            "skipped": tuple(from_row(Skip, row) for row in fields["skipped"]),
            "notes": tuple(from_row(Note, row) for row in fields["notes"]),
            "inputs": tuple(from_row(InputFile, row) for row in fields["inputs"]),
        }
    )
