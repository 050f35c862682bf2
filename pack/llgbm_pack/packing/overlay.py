"""overlay: newer deltas or texts for a finished set, as a set of their own. Interrupted and run again, it goes on."""

from __future__ import annotations

import functools
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llgbm_pack.packing.build import Built, Progress, run_build
from llgbm_pack.plan.overlay import plan_overlay
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_pack.plan.values import Note
from llgbm_shards.arguments import require
from llgbm_shards.directory import Directory
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.names import RECORD_NAME
from llgbm_shards.record import read_record


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayReport:
    """Result of an overlay."""

    out: str  # the overlay, as the user named it
    base: str  # digest of the set it was made of
    committed: bool  # whether it was committed (``--strict`` can forbid it)
    digest: str  # of its ``shardset.json``; "" when not committed
    members: tuple[str, ...]  # members of its samples
    samples: int  # as many as the base has
    resumed: int  # of these, samples of shards that an earlier run had finished
    with_delta: int  # of these, samples with a delta
    notes: tuple[Note, ...]  # warnings
    shards: int  # shards of the overlay
    set_bytes: int  # bytes of all shards
    matched_by: dict[str, int]  # samples by how their delta was found
    text_sources: dict[str, int]  # samples by where their tokenized texts come from: base or texts-dir
    fallbacks: int  # texts whose prompt stood in for a missing answer
    seconds: float  # wall time in all
    packing_seconds: float  # of packing alone

    @property
    def exit_code(self) -> int:
        """0; 1 when it was not committed."""
        return int(not self.committed)

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


def overlay(options: OverlayOptions, *, progress: Progress | None = None) -> OverlayReport:
    """Make an overlay of a set: its samples again, with other deltas, or texts tokenized anew, and without weights.

    Args:
        options: Of what set, with what, to where.
        progress: Told about the plan and the samples as they are packed.

    Raises:
        UsageError: It cannot be done as asked: the base is an overlay, or a sample would have no delta or texts.
        DamageError: The base is unfinished or damaged.
        StorageError: The output cannot be written or is locked; finished shards are kept.
    """
    require(isinstance(options, OverlayOptions), "options", "OverlayOptions", options)
    start = time.monotonic()
    _refuse_to_replace_weights(options)
    built = run_build(options, functools.partial(plan_overlay, options), progress)
    return _report(options, built, time.monotonic() - start)


def _refuse_to_replace_weights(options: OverlayOptions) -> None:
    """What an overlay has not is lost when it takes the place of a set with weights, and that may be all there is of them."""
    if not (options.overwrite and (options.out / RECORD_NAME).exists()):
        return
    try:
        what = "" if read_record(Directory(options.out)).base else "OUT is a set with weights"
    except DamageError:
        what = "OUT may be a set with weights: its commit record is damaged"
    if what:
        raise UsageError(
            what,
            where=str(options.out),
            expected="an overlay to replace",
            do="Choose another OUT, or delete that set first.",
        )


def _report(options: OverlayOptions, built: Built, seconds: float) -> OverlayReport:
    plan, records = built.plan, built.records
    matched_by = Counter[str]()
    for record in records:
        matched_by.update(record.matched_by)
    has_deltas = "delta" in plan.context.members
    return OverlayReport(
        out=str(options.out),
        base=plan.context.base,
        committed=bool(built.digest),
        digest=built.digest,
        members=plan.context.members,
        samples=sum(len(record.rows) for record in records),
        resumed=built.run.resumed,
        with_delta=sum(row["has_delta"] for record in records for row in record.rows) if has_deltas else 0,
        notes=(*plan.notes, *(note for record in records for note in record.notes)),
        shards=len(records),
        set_bytes=sum(record.size for record in records),
        matched_by=dict(sorted(matched_by.items())),
        text_sources=plan.text_sources,
        fallbacks=sum(record.fallbacks for record in records),
        seconds=seconds,
        packing_seconds=built.run.seconds,
    )
