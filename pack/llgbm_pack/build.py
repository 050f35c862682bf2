"""build: from a zoo to a committed shard set. Interrupted and run again, it goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from llgbm_pack.commit import commit_set
from llgbm_pack.conditions import save_tokenizer
from llgbm_pack.executor import run_jobs
from llgbm_pack.jobs import ShardJob
from llgbm_pack.lock import builder_lock
from llgbm_pack.options import PackOptions
from llgbm_pack.packer import TOKENIZER_DIRECTORY
from llgbm_pack.plan import Plan, make_plan
from llgbm_pack.replace import refuse_foreign, replacement_directory, swap_in
from llgbm_pack.report import PackReport
from llgbm_pack.shard_record import PACK_DIRECTORY, ShardRecord, finished_record, load_record
from llgbm_pack.survey import Skip
from llgbm_shards.canonical import dump_json, load_json
from llgbm_shards.errors import HeaderError, PlanError, UsageError
from llgbm_shards.record import RECORD_NAME
from llgbm_shards.storage import read_file, remove_temporary, storage_errors, write_file

PLAN_NAME: Final = "plan.json"
_MAX_PLAN_BYTES: Final = 1 << 30


class Progress(Protocol):
    """What a build tells while it runs; all calls come from the calling thread."""

    def planned(self, plan: Plan, done: int) -> None:
        """The plan is made; ``done`` of its samples are already packed by an earlier run."""
        ...

    def advanced(self, samples: int, source_bytes: int) -> None:
        """Totals of this run so far."""
        ...


class _Silent:
    def planned(self, plan: Plan, done: int) -> None: ...

    def advanced(self, samples: int, source_bytes: int) -> None: ...


@dataclass(slots=True)
class _Totals:
    samples: int = 0
    source_bytes: int = 0


def build(options: PackOptions, *, progress: Progress | None = None) -> PackReport:
    """Pack a zoo into a shard set.

    Args:
        options: What to pack, from where to where, and how.
        progress: Told about the plan and the samples as they are packed.

    Returns:
        What was done. A checkpoint that cannot be packed is skipped and listed there.

    Raises:
        UsageError: The request as a whole cannot be done as asked; nothing was written.
        StorageError: The output cannot be written or is locked; finished shards are kept.
    """
    start = time.monotonic()
    progress = progress or _Silent()
    _refuse_finished(options)
    out = replacement_directory(options.out) if options.overwrite else options.out
    if options.overwrite and (out / RECORD_NAME).exists():
        swap_in(out, options.out)  # An earlier --overwrite was cut off between finishing and swapping.
    plan = make_plan(options, out)
    with storage_errors(out):
        refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
    with builder_lock(out / PACK_DIRECTORY):
        _refuse_finished(options)
        totals, resumed = _pack(plan, progress)
        records = [load_record(out, job) for job in plan.jobs]
        skipped = sorted(_all_skipped(plan, records), key=lambda skip: skip.checkpoint)
        digest = ""
        if not (options.strict and (skipped or plan.notes or any(record.notes for record in records))):
            _refuse_empty(options, records, skipped)
            digest = commit_set(plan, records, skipped).digest
    if digest and options.overwrite:
        swap_in(out, options.out)
    return _report(plan, records, skipped, digest, totals, resumed, time.monotonic() - start)


def _refuse_finished(options: PackOptions) -> None:
    if not options.overwrite and (options.out / RECORD_NAME).exists():
        raise UsageError(
            "this set is finished",
            where=str(options.out),
            do="Choose another OUT, or replace it with --overwrite.",
        )


def _pack(plan: Plan, progress: Progress) -> tuple[_Totals, int]:
    """Pack the shards that are not finished yet; returns what this run did and how many samples it found done."""
    out = plan.context.out
    _begin(plan)
    pending = [job for job in plan.jobs if finished_record(out, job) is None]
    resumed = plan.samples - sum(len(job.samples) for job in pending)
    progress.planned(plan, resumed)
    totals = _Totals()

    def advanced(samples: int, source_bytes: int) -> None:
        totals.samples, totals.source_bytes = samples, source_bytes
        progress.advanced(samples, source_bytes)

    with _no_leftovers(out):
        run_jobs(plan.context, pending, workers=plan.options.worker_count, on_progress=advanced)
    return totals, resumed


@contextlib.contextmanager
def _no_leftovers(out: Path) -> Iterator[None]:
    """Whatever ends the packing, unfinished files do not stay."""
    try:
        yield
    finally:
        remove_temporary(out)
        remove_temporary(out / PACK_DIRECTORY)


def _begin(plan: Plan) -> None:
    """Write the plan, or find that an interrupted build had the same one; put the tokenizer in its place."""
    out = plan.context.out
    path = out / PACK_DIRECTORY / PLAN_NAME
    if path.exists():
        _refuse_other_plan(plan, path)
    else:
        shards = {job.name: [sample.path for sample in job.samples] for job in plan.jobs}
        write_file(path, dump_json({"fingerprint": plan.fingerprint, "shards": shards}))
    remove_temporary(out)
    if plan.options.text_tokenizer is not None:
        save_tokenizer(plan.options.text_tokenizer, out / TOKENIZER_DIRECTORY)


def _refuse_other_plan(plan: Plan, path: Path) -> None:
    try:
        began = load_json(read_file(path), where=PLAN_NAME, max_bytes=_MAX_PLAN_BYTES)["fingerprint"]
    except (HeaderError, KeyError, TypeError):
        began = "unreadable"
    if began != plan.fingerprint:
        raise PlanError(
            "an unfinished build with other options or another zoo is here",
            where=str(plan.context.out),
            expected=f"plan {plan.fingerprint[:16]}",
            got=f"plan {began[:16]}",
            do=f"Run the command it was begun with, or delete {plan.context.out} to begin anew.",
        )


def _refuse_empty(options: PackOptions, records: Sequence[ShardRecord], skipped: Sequence[Skip]) -> None:
    if not any(record.rows for record in records):
        rows = [f"{skip.checkpoint}: {skip.reason}" for skip in skipped]
        raise PlanError(
            f"none of {len(rows)} checkpoints could be packed",
            where=str(options.zoo),
            got="\n  " + "\n  ".join(rows),
        )


def _all_skipped(plan: Plan, records: Sequence[ShardRecord]) -> Iterator[Skip]:
    yield from plan.skipped
    for record in records:
        yield from record.skipped


def _report(
    plan: Plan,
    records: Sequence[ShardRecord],
    skipped: Sequence[Skip],
    digest: str,
    totals: _Totals,
    resumed: int,
    seconds: float,
) -> PackReport:
    matched_by: Counter[str] = Counter()
    for record in records:
        matched_by.update(record.matched_by)
    return PackReport(
        out=str(plan.options.out),
        committed=bool(digest),
        digest=digest,
        found=plan.found,
        excluded=plan.excluded,
        packed=sum(len(record.rows) for record in records),
        resumed=resumed,
        skipped=tuple(skipped),
        notes=(*plan.notes, *(note for record in records for note in record.notes)),
        shards=sum(bool(record.rows) for record in records),
        set_bytes=sum(record.size for record in records),
        source_bytes=totals.source_bytes,
        num_tokens=plan.context.layout.num_tokens,
        matched_by=dict(sorted(matched_by.items())),
        text_sources=plan.text_sources,
        fallbacks=sum(record.fallbacks for record in records),
        duplicates=_duplicates(plan.jobs, records),
        seconds=seconds,
    )


def _duplicates(jobs: Sequence[ShardJob], records: Sequence[ShardRecord]) -> tuple[tuple[str, ...], ...]:
    """Groups of checkpoints whose weights files have one digest."""
    weights = {str(sample.weights): sample.path for job in jobs for sample in job.samples}
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for source in record.inputs:
            if source.path in weights:
                groups[source.digest].append(weights[source.path])
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))
