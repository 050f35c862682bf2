"""What ``.pack/`` holds until the set is committed: the plan a build was begun with, a record of each finished shard."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from llgbm_pack.plan.plan import Plan
from llgbm_pack.plan.values import InputFile, Note, ShardJob, Skip, from_row
from llgbm_pack.tokenize.conditions import save_loaded
from llgbm_shards.canonical import blake3_hex, dump_json, load_json
from llgbm_shards.errors import HeaderError, PlanError, StorageError
from llgbm_shards.names import PACK_DIRECTORY, PLAN_NAME, TOKENIZER_DIRECTORY, parity_name
from llgbm_shards.storage import read_file, refuse_link, remove_temporary, storage_errors, write_file

#: Of a plan, and of a shard's record.
_MAX_BYTES: Final = 1 << 30
_FEW: Final = 3


def begin(plan: Plan) -> Any:
    """Write the plan and the tokenizer; the caller holds the lock. Returns that tokenizer, loaded from its files, or None.

    Raises:
        PlanError: An unfinished build of another plan is here; says what differs.
    """
    out = plan.context.out
    with storage_errors(out):
        refuse_link(out / TOKENIZER_DIRECTORY)
        for directory in (out, out / PACK_DIRECTORY):
            remove_temporary(directory)
    copy, tokenizer = _save_tokenizer(plan)
    now = _description(plan, tokenizer)
    path = out / PACK_DIRECTORY / PLAN_NAME
    resumed = path.exists()
    if resumed:
        _refuse_other(_read(path), now, out)
    else:  # It may be of a build that died before it had a plan.
        shutil.rmtree(out / TOKENIZER_DIRECTORY, ignore_errors=True)
    _place(tokenizer, out / TOKENIZER_DIRECTORY)
    if not resumed:
        write_file(path, dump_json(now))
    return copy


def _save_tokenizer(plan: Plan) -> tuple[Any, dict[str, bytes]]:
    """The loaded copy, and path -> content of its files; saved elsewhere first, to be compared and to land whole."""
    if plan.options.text_tokenizer is None:
        return None, {}
    with tempfile.TemporaryDirectory(prefix="llgbm-pack-") as temporary:
        copy = save_loaded(plan.tokenizer, plan.options.text_tokenizer, Path(temporary))
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        return copy, {path.relative_to(temporary).as_posix(): read_file(path) for path in files}


def _place(files: Mapping[str, bytes], directory: Path) -> None:
    for name, data in files.items():
        path = directory / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and read_file(path) == data:
                continue
        write_file(path, data)


def _description(plan: Plan, tokenizer: Mapping[str, bytes]) -> dict[str, Any]:
    options = plan.options
    return {
        "fingerprint": plan.fingerprint,
        "options": {**options.content(), "map": [f"{old}={new}" for old, new in options.maps]},
        "shards": {job.name: [sample.path for sample in job.samples] for job in plan.jobs},
        "tokenizer": {name: blake3_hex(data) for name, data in tokenizer.items()},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        began = load_json(read_file(path), where=PLAN_NAME, max_bytes=_MAX_BYTES)
    except HeaderError:
        return {}
    return began if isinstance(began, dict) else {}


def _refuse_other(began: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    if all(began.get(name) == now[name] for name in ("fingerprint", "tokenizer")):
        return
    raise PlanError(
        "an unfinished build of another plan is here",
        where=str(out),
        expected="the plan it was begun with",
        got="; ".join(_differences(began, now)),
        do=f"Run the command it was begun with on an unchanged zoo, or delete {out} to begin anew.",
    )


def _differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a user changed, in words."""
    if not _tells(began):
        return [f"a {PLAN_NAME} that cannot be read"]
    was = began["options"]
    differences = [
        f"{name.replace('_', ' ')} {value!r:.200} (was {was.get(name)!r:.200})"
        for name, value in now["options"].items()
        if value != was.get(name)
    ]
    before = {path for paths in began["shards"].values() for path in paths}
    after = {path for paths in now["shards"].values() for path in paths}
    differences += [_few(after - before, "more to pack")] if after - before else []
    differences += [_few(before - after, "no longer to pack")] if before - after else []
    differences += ["another text tokenizer"] if began["tokenizer"] != now["tokenizer"] else []
    return differences or ["other shards"]


def _tells(began: Mapping[str, Any]) -> bool:
    """Whether it has what a difference is told from: the file may be damaged."""
    if not all(isinstance(began.get(name), dict) for name in ("options", "shards", "tokenizer")):
        return False
    return all(
        isinstance(paths, list) and all(isinstance(path, str) for path in paths)
        for paths in began["shards"].values()
    )


def _few(paths: set[str], what: str) -> str:
    rest = ", ..." if len(paths) > _FEW else ""
    return f"{len(paths)} checkpoints {what} ({', '.join(sorted(paths)[:_FEW]):.600}{rest})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What one finished shard holds and what it was made of."""

    name: str  # of its file
    split: str  # ``train`` or ``val``
    plan: str  # digest of the job it was packed for
    size: int  # bytes; 0 when every sample was skipped and no file was written
    digest: str  # its shard digest, "" without a file
    parity_size: int  # bytes of its parity file; 0 without one
    parity_digest: str  # BLAKE3 of that, "" without one
    rows: tuple[dict[str, Any], ...]  # index rows of its samples, digests as hex
    skipped: tuple[Skip, ...]  # checkpoints that turned out not to be packable
    notes: tuple[Note, ...]  # warnings
    inputs: tuple[InputFile, ...]  # files it was made of, as they were
    matched_by: dict[str, int]  # samples by how their delta was found
    fallbacks: int  # texts whose prompt stood in for a missing answer

    def save(self, out: Path) -> None:
        """Write the record durably; from then on the shard counts as finished."""
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
        record = _shard_record(load_json(read_file(path), where=path.name, max_bytes=_MAX_BYTES))
    except (HeaderError, KeyError, TypeError):
        return None  # A record that does not parse proves nothing: the shard is packed again.
    sizes = _size(out / job.name), _size(out / parity_name(job.name))
    if record.plan != job.digest() or (record.size, record.parity_size) != sizes:
        return None
    return record if all(file.holds() for file in record.inputs) else None


def _size(path: Path) -> int:
    """Bytes of a file; 0 without one."""
    return path.stat().st_size if path.is_file() else 0


def load_record(out: Path, job: ShardJob) -> ShardRecord:
    """The record of a shard that has just been packed; a StorageError when that is not sound any more."""
    record = finished_record(out, job)
    if record is None:
        raise StorageError(
            "an input or the shard changed while the build was running",
            where=job.name,
            do="Run the same command again: this shard will be packed again.",
        )
    return record


def _shard_record(fields: Mapping[str, Any]) -> ShardRecord:
    return ShardRecord(
        **{
            **fields,
            "rows": tuple(fields["rows"]),
            "skipped": tuple(from_row(Skip, row) for row in fields["skipped"]),
            "notes": tuple(from_row(Note, row) for row in fields["notes"]),
            "inputs": tuple(from_row(InputFile, row) for row in fields["inputs"]),
        }
    )
