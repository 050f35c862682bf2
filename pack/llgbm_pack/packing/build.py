"""build: from a zoo to a committed shard set. Interrupted and run again, it goes on where it stopped."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from llgbm_pack.packing.commit import commit_set
from llgbm_pack.packing.lock import builder_lock, refuse_locked
from llgbm_pack.packing.overwrite import clear, replacement_directory, swap_in
from llgbm_pack.packing.pool import run_jobs
from llgbm_pack.packing.report import PackReport, Run, all_skipped, report_of
from llgbm_pack.packing.unfinished import ShardRecord, begin, finished_record, load_record
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.overlay_options import AnyOptions
from llgbm_pack.plan.plan import Plan, make_plan
from llgbm_pack.plan.same_reason import grouped
from llgbm_pack.plan.values import Skip
from llgbm_shards.arguments import require
from llgbm_shards.errors import PlanError, UsageError
from llgbm_shards.names import PACK_DIRECTORY, PLAN_NAME, RECORD_NAME
from llgbm_shards.out_directory import refuse_foreign
from llgbm_shards.storage import fsync_directory, make_directory, remove_temporary, storage_errors


@runtime_checkable
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
    require(isinstance(options, PackOptions), "options", "PackOptions", options)
    start = time.monotonic()
    built = run_build(options, functools.partial(make_plan, options), progress)
    return report_of(built.plan, built.records, built.digest, built.run, time.monotonic() - start)


@dataclass(frozen=True, slots=True)
class Built:
    """What came of a build, or of an overlay."""

    plan: Plan
    records: list[ShardRecord]  # of its shards; none where --strict ended it before the first
    digest: str  # of the commit record; "" when not committed
    run: Run


def run_build(options: AnyOptions, make: Callable[[Path], Plan], progress: Progress | None) -> Built:
    """Follow a plan from its making, given where the shards go, to the commit; errors as of :func:`build`."""
    progress = _Silent() if progress is None else progress
    require(isinstance(progress, Progress), "progress", "planned() and advanced()", progress)
    out = _place(options)
    plan = make(out)
    if options.strict and (plan.skipped or plan.notes):  # Known before hours of packing.
        return Built(plan, [], "", Run())
    with storage_errors(out):
        make_directory(out)
    with builder_lock(out / PACK_DIRECTORY):
        _make_ready(options, out)
        run = _pack(plan, progress)
        records = [load_record(out, job) for job in plan.jobs]
        skipped = all_skipped(plan, records)
        digest = ""
        if not (options.strict and (skipped or plan.notes or any(record.notes for record in records))):
            _refuse_empty(plan, records, skipped)
            digest = commit_set(plan, records, skipped).digest
            _finish(options, out)
    return Built(plan, records, digest, run)


def plan_build(options: PackOptions) -> Plan:
    """The plan that :func:`build` would follow; nothing is written.

    Raises:
        UsageError: The build would be refused.
        StorageError: The zoo cannot be read, or the output is locked.
    """
    require(isinstance(options, PackOptions), "options", "PackOptions", options)
    return make_plan(options, _place(options))


def _place(options: AnyOptions) -> Path:
    """Where the shards go; what can be refused now is refused now, for the plan may take long."""
    refuse_foreign(options.out)
    refuse_locked(options.out / PACK_DIRECTORY)
    if options.overwrite:
        out = replacement_directory(options.out)
        refuse_locked(out / PACK_DIRECTORY)
        return out
    if (options.out / RECORD_NAME).exists():
        if (options.out / PACK_DIRECTORY).exists():  # A build died in its last step, after the commit.
            with builder_lock(options.out / PACK_DIRECTORY):
                _refuse_finished(options.out)
        raise _finished(options.out)
    return options.out


def _make_ready(options: AnyOptions, out: Path) -> None:
    """Look again, now that the lock is held."""
    if not options.overwrite:
        _refuse_finished(out)
        return
    with storage_errors(out):
        if not (out / PACK_DIRECTORY / PLAN_NAME).exists():
            clear(out)
        (out / RECORD_NAME).unlink(missing_ok=True)


def _refuse_finished(out: Path) -> None:
    if (out / RECORD_NAME).exists():
        shutil.rmtree(out / PACK_DIRECTORY, ignore_errors=True)  # A finished set has none.
        raise _finished(out)


def _finished(out: Path) -> UsageError:
    do = "Choose another OUT, or replace it with --overwrite."
    return UsageError("this set is finished", where=str(out), do=do)


def _finish(options: AnyOptions, out: Path) -> None:
    """The set is committed: put it in its place, remove what was kept to resume it. The lock is still held."""
    if options.overwrite:
        swap_in(out, options.out)
    with storage_errors(options.out):
        shutil.rmtree(options.out / PACK_DIRECTORY, ignore_errors=True)
        fsync_directory(options.out)


def _pack(plan: Plan, progress: Progress) -> Run:
    """Pack the shards that are not finished yet."""
    out = plan.context.out
    tokenizer = begin(plan)
    pending = [job for job in plan.jobs if finished_record(out, job) is None]
    run = Run(resumed=plan.samples - sum(len(job.samples) for job in pending))
    progress.planned(plan, run.resumed)
    start = time.monotonic()

    def advanced(samples: int, source_bytes: int) -> None:
        run.source_bytes = source_bytes
        progress.advanced(samples, source_bytes)

    try:
        run_jobs(plan.context, pending, plan.options.worker_count, advanced, tokenizer)
    finally:
        # Whatever ends the packing, unfinished files do not stay. The output itself may be gone: that is another error.
        with storage_errors(out), contextlib.suppress(FileNotFoundError):
            remove_temporary(out)
            remove_temporary(out / PACK_DIRECTORY)
    run.seconds = time.monotonic() - start
    return run


def _refuse_empty(plan: Plan, records: Sequence[ShardRecord], skipped: Sequence[Skip]) -> None:
    if not any(record.rows for record in records):
        rows = grouped((skip.checkpoint, skip.reason) for skip in skipped)
        raise PlanError(
            f"none of {len(skipped)} checkpoints could be packed",
            where=str(plan.context.zoo),
            got="\n  " + "\n  ".join(rows),
        )
