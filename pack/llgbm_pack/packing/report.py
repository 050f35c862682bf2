"""PackReport: what a build did, as a value, told from its plan and its records; rendering is in ``cli/render.py``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llgbm_pack.packing.unfinished import ShardRecord
from llgbm_pack.plan.plan import Plan
from llgbm_pack.plan.values import Note, ShardJob, Skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """Result of a build.

    Attributes:
        out: The set, as the user named it.
        committed: Whether the set was committed (``--strict`` can forbid it).
        digest: Digest of ``shardset.json``, to be pinned; "" when not committed.
        found: Checkpoints found in the zoo.
        excluded: Left out by --include, --exclude and --limit.
        ignored: Directories of the zoo that were not entered: hidden ones, ``tmp-*``.
        packed: Samples in the set.
        splits: Of these, the samples of each split.
        resumed: Of these, samples of shards that an earlier run had finished.
        skipped: Checkpoints not packed, each with its reason.
        notes: Warnings.
        shards: Shards of the set.
        set_bytes: Bytes of all shards.
        parity_bytes: Bytes of their parity files.
        source_bytes: Bytes of weights read in this run.
        num_tokens: Tokens of each sample.
        matched_by: Samples by how their delta was found.
        text_sources: Checkpoints by where their texts come from.
        fallbacks: Texts whose prompt stood in for a missing answer.
        duplicates: Groups of checkpoints whose weights files are equal.
        seconds: Wall time of the whole build: imports, plan, packing, commit.
        packing_seconds: Wall time of packing alone, the start of the workers included; the rate is over this.
    """

    out: str
    committed: bool
    digest: str
    found: int
    excluded: int
    ignored: tuple[str, ...]
    packed: int
    splits: dict[str, int]
    resumed: int
    skipped: tuple[Skip, ...]
    notes: tuple[Note, ...]
    shards: int
    set_bytes: int
    parity_bytes: int
    source_bytes: int
    num_tokens: int
    matched_by: dict[str, int]
    text_sources: dict[str, int]
    fallbacks: int
    duplicates: tuple[tuple[str, ...], ...]
    seconds: float
    packing_seconds: float

    @property
    def exit_code(self) -> int:
        """0: all packed, or skipped only what a policy asked to skip; 1: a checkpoint was skipped for a fault."""
        return int(not self.committed or any(skip.fault for skip in self.skipped))

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


@dataclass(slots=True)
class Run:
    """What one run did, of the build that it began or went on with."""

    resumed: int = 0  # samples of shards that an earlier run had finished
    source_bytes: int = 0  # bytes of weights read
    seconds: float = 0.0  # of packing


def report_of(
    plan: Plan, records: Sequence[ShardRecord], digest: str, run: Run, seconds: float
) -> PackReport:
    """The report of a build; without records of one that --strict ended before the first shard."""
    matched_by: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for record in records:
        matched_by.update(record.matched_by)
        splits[record.split] += len(record.rows)
    return PackReport(
        out=str(plan.options.out),
        committed=bool(digest),
        digest=digest,
        found=plan.found,
        excluded=plan.excluded,
        ignored=plan.ignored,
        packed=splits.total(),
        splits=dict(splits),
        resumed=run.resumed,
        skipped=tuple(all_skipped(plan, records)),
        notes=(*plan.notes, *(note for record in records for note in record.notes)),
        shards=sum(bool(record.rows) for record in records),
        set_bytes=sum(record.size for record in records),
        parity_bytes=sum(record.parity_size for record in records),
        source_bytes=run.source_bytes,
        num_tokens=plan.context.layout.num_tokens,
        matched_by=dict(sorted(matched_by.items())),
        text_sources=plan.text_sources,
        fallbacks=sum(record.fallbacks for record in records),
        duplicates=_duplicates(plan.jobs, records),
        seconds=seconds,
        packing_seconds=run.seconds,
    )


def all_skipped(plan: Plan, records: Sequence[ShardRecord]) -> list[Skip]:
    """What the plan left out and what turned out not to be packable, in path order."""
    late = [skip for record in records for skip in record.skipped]
    return sorted([*plan.skipped, *late], key=lambda skip: skip.checkpoint)


def _duplicates(jobs: Sequence[ShardJob], records: Sequence[ShardRecord]) -> tuple[tuple[str, ...], ...]:
    """Groups of checkpoints whose weights files have one digest."""
    weights = {str(sample.weights): sample.path for job in jobs for sample in job.samples}
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for source in record.inputs:
            if source.path in weights and source.digest:
                groups[source.digest].append(weights[source.path])
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))
