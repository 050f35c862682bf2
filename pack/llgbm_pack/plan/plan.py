"""The plan: what will be packed, into which shard, and what will not, and why. Nothing is written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llgbm_pack.plan.assignment import TRAIN, VAL, Assignment, assign_shards
from llgbm_pack.plan.consensus import choose_layout, keep_fitting
from llgbm_pack.plan.deltas import plan_deltas
from llgbm_pack.plan.estimate import estimate_bytes
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.overlay_options import AnyOptions
from llgbm_pack.plan.samples import join_samples
from llgbm_pack.plan.survey import nothing_to_pack, survey
from llgbm_pack.plan.values import Note, PackContext, PlannedSample, SetPart, ShardJob, Skip
from llgbm_pack.sources.tasks import zoo_tasks
from llgbm_pack.sources.zoo import Candidate, ZooListing, walk_zoo
from llgbm_pack.tokenize.conditions import describe, load_tokenizer
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.layout import Layout
from llgbm_shards.members import SUFFIX
from llgbm_shards.texts import ConditionSpec

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a build will do."""

    options: AnyOptions  # the options it was made from
    context: PackContext  # what all shards share
    jobs: tuple[ShardJob, ...]
    found: int  # checkpoints found in the zoo
    excluded: int  # checkpoints left out by --include, --exclude and --limit
    ignored: tuple[str, ...]  # directories of the zoo that were not entered: hidden ones, ``tmp-*``
    skipped: tuple[Skip, ...]  # checkpoints that cannot be packed, or that a policy leaves out
    notes: tuple[Note, ...]
    text_sources: dict[str, int]  # checkpoints by where their texts come from
    estimated_bytes: int  # bytes of all shards and their parity; texts and json are estimates
    fingerprint: str  # digest of options, sorted paths and shard assignment
    tokenizer: Any = field(repr=False, compare=False)  # the text tokenizer, loaded; None packs no text ids

    @property
    def samples(self) -> int:
        """Checkpoints to pack."""
        return sum(self.splits.values())

    @property
    def splits(self) -> dict[str, int]:
        """Checkpoints to pack, by split."""
        counts: Counter[str] = Counter()
        for job in self.jobs:
            counts[job.split] += len(job.samples)
        return dict(counts)

    @property
    def exit_code(self) -> int:
        """1 when a checkpoint will be skipped for a fault, as of the build itself."""
        return int(any(skip.fault for skip in self.skipped))

    def to_json(self) -> dict[str, Any]:
        """The plan as ``--dry-run --format json`` prints it."""
        layout = self.context.layout
        planned = [sample for job in self.jobs for sample in job.samples]
        tokens = {
            "count": layout.num_tokens,
            "rank": layout.rank,
            "chunk": layout.chunk,
            "dtype": layout.dtype,
        }
        return {
            "found": self.found,
            "excluded": self.excluded,
            "ignored": self.ignored,
            "samples": self.samples,
            "splits": self.splits,
            "text_sources": self.text_sources,
            "estimated_bytes": self.estimated_bytes,
            "fingerprint": self.fingerprint,
            "tokens": tokens,
            "members": list(self.context.members),
            "matched_by": dict(Counter(sample.matched_by for sample in planned if sample.matched_by)),
            "shards": [{"name": job.name, "samples": len(job.samples)} for job in self.jobs],
            "skipped": [asdict(skip) for skip in self.skipped],
            "notes": [asdict(note) for note in self.notes],
        }


def make_plan(options: PackOptions, out: Path | None = None, *, only: SetPart | None = None) -> Plan:
    """Walk the zoo, read headers, texts and deltas, and decide everything but the bytes.

    Args:
        options: What is asked for.
        out: Directory the shards go to; ``options.out`` unless it is being replaced.
        only: Shards of a finished set, to plan these and no others. A checkpoint of theirs that cannot be packed is
            among the skipped ones, and what the plan tells of the whole zoo (found, excluded) is of no use.

    Raises:
        PlanError: The zoo, the deltas or the texts do not allow what is asked for; lists all of it.
        StorageError: The zoo cannot be read.
    """
    wanted = only.paths if only else frozenset()
    listing = walk_zoo(options.zoo, options.include, options.exclude, wanted=wanted)
    candidates = _candidates(listing, options, only)
    excluded = listing.excluded + len(listing.checkpoints) - len(candidates)
    skipped = [Skip(bad.path, bad.reason, bad.fault) for bad in listing.rejected]

    def left(kept: list[T], dropped: Sequence[Skip]) -> list[T]:
        """What is left to plan. A build needs something; a part of a set may have nothing left."""
        skipped.extend(dropped)
        if not (kept or only):
            raise nothing_to_pack(options.zoo, skipped, excluded)
        return kept

    surveyed = left(*survey(candidates, options.alpha))
    layout = only.layout if only else choose_layout(surveyed, options.layout, options.zoo)
    fitting = left(*keep_fitting(surveyed, layout, options.layout))
    # What a name or a path means is a matter of the whole zoo, whatever part of it is packed.
    whole = walk_zoo(options.zoo, wanted=wanted) if options.include or options.exclude else listing
    tasks = zoo_tasks(options.zoo, whole.nameable)
    deltas = plan_deltas(fitting, _claimants(whole, options, only), tasks, options, only)
    without = {skip.checkpoint for skip in deltas.skipped}
    teachers = left([teacher for teacher in fitting if teacher.path not in without], deltas.skipped)
    tokenizer, conditions, notes = plan_conditions(options, only)
    samples, sizes, faults = join_samples(teachers, deltas, tasks, options)
    samples = left(samples, faults)
    context = _context(options, out or options.out, layout, conditions, deltas.width)
    shards = only.shards if only else _assigned(samples, layout, options)
    jobs = make_jobs(shards, samples, context)
    return Plan(
        options=options,
        context=context,
        jobs=jobs,
        found=len(listing.checkpoints) + len(listing.rejected) + listing.excluded,
        excluded=excluded,
        ignored=listing.ignored,
        skipped=tuple(sorted(skipped, key=lambda skip: skip.checkpoint)),
        notes=(*notes, *deltas.notes, *_empty_splits(jobs, options)),
        text_sources=dict(sorted(Counter(size.source for size in sizes).items())),
        estimated_bytes=estimate_bytes(context, sizes, len(jobs)),
        fingerprint=fingerprint(options, jobs),
        tokenizer=tokenizer,
    )


def _candidates(listing: ZooListing, options: PackOptions, only: SetPart | None) -> Sequence[Candidate]:
    if only is None:
        return listing.checkpoints[: options.limit]
    paths = only.paths
    return [candidate for candidate in listing.checkpoints if candidate.path in paths]


def _claimants(whole: ZooListing, options: PackOptions, only: SetPart | None) -> list[str]:
    """All checkpoints that claim a delta; for a part of a set, those of its build, as far as the set knows them."""
    known = only.known if only else ()
    if only and only.knows_skipped and not (options.include or options.exclude or options.limit):
        return list(known)
    return [*known, *(one.path for one in whole.checkpoints), *(bad.path for bad in whole.rejected)]


def plan_conditions(
    options: AnyOptions, only: SetPart | None
) -> tuple[Any, ConditionSpec | None, list[Note]]:
    """The text tokenizer, how texts are tokenized, and warnings; the plan of a part needs no tokenizer."""
    if only or options.text_tokenizer is None:
        return None, only.conditions if only else None, []
    tokenizer = load_tokenizer(options.text_tokenizer)
    spec, warning = describe(tokenizer, forms=options.forms or (), joiner=options.joiner or "")
    return tokenizer, spec, [Note(checkpoint="", what=warning)] if warning else []


def _context(
    options: PackOptions, out: Path, layout: Layout, conditions: ConditionSpec | None, delta_width: int
) -> PackContext:
    absent = {field for field, has in (("texts", conditions), ("delta", delta_width)) if not has}
    return PackContext(
        zoo=options.zoo,
        out=out,
        layout=layout,
        members=tuple(field for field in SUFFIX if field not in absent),
        cast=options.dtype != "auto",
        alpha=options.alpha,
        texts=options.texts,
        max_texts=options.max_texts,
        seed=options.seed,
        conditions=conditions,
        delta_width=delta_width,
        parity=options.parity,
    )


def _assigned(samples: Sequence[PlannedSample], layout: Layout, options: PackOptions) -> list[Assignment]:
    by_task = options.split_by == "task"
    return assign_shards(
        [(sample.path, sample.task if by_task else sample.path) for sample in samples],
        pieces_bytes=layout.pieces_bytes,
        shard_bytes=options.shard_bytes,
        seed=options.seed,
        val_fraction=options.split,
    )


def make_jobs(
    shards: Sequence[Assignment], samples: Sequence[PlannedSample], context: PackContext
) -> tuple[ShardJob, ...]:
    """A job for each shard, with its samples in their order."""
    by_path = {sample.path: sample for sample in samples}
    digest = context.digest()
    return tuple(
        ShardJob(
            name=shard.name,
            split=shard.split,
            samples=tuple(by_path[path] for path in shard.paths if path in by_path),
            context=digest,
        )
        for shard in shards
    )


def _empty_splits(jobs: Sequence[ShardJob], options: PackOptions) -> list[Note]:
    """A split that is asked for and gets nothing would be missed only when it is to be read."""
    if not options.split:
        return []
    empty = [split for split in (TRAIN, VAL) if all(job.split != split for job in jobs)]
    groups = "tasks go whole into one split" if options.split_by == "task" else "there are few checkpoints"
    why = f"{groups}; another --seed, --split or --split-by may help"
    return [Note(checkpoint="", what=f"no checkpoint falls into the split {split}: {why}") for split in empty]


def fingerprint(options: AnyOptions, jobs: Sequence[ShardJob]) -> str:
    """Digest of options, paths, shards and what shapes them: with another one a build is not gone on with."""
    shards = {job.name: [sample.path for sample in job.samples] for job in jobs}
    maps = [list(pair) for pair in options.maps]
    paths = sorted(path for paths in shards.values() for path in paths)
    content = {"options": options.content(), "maps": maps, "paths": paths, "shards": shards}
    return blake3_hex(dump_json(content))
