"""The plan: what will be packed, into which shard, and what will not, and why. Nothing is written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llgbm_pack.plan.assignment import TRAIN, VAL, assign_shards
from llgbm_pack.plan.consensus import choose_layout, keep_fitting
from llgbm_pack.plan.deltas import DeltaPlan, plan_deltas
from llgbm_pack.plan.estimate import estimate_bytes
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.samples import join_samples
from llgbm_pack.plan.survey import nothing_to_pack, survey
from llgbm_pack.plan.values import Note, PackContext, PlannedSample, SetPart, ShardJob, Skip
from llgbm_pack.sources.tasks import zoo_tasks
from llgbm_pack.sources.zoo import ZooListing, walk_zoo
from llgbm_pack.tokenize.conditions import describe, load_tokenizer
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.members import SUFFIX
from llgbm_shards.texts import ConditionSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a build will do."""

    options: PackOptions  # the options it was made from
    context: PackContext  # what all shards share
    jobs: tuple[ShardJob, ...]
    found: int  # checkpoints found in the zoo
    excluded: int  # checkpoints left out by --include, --exclude and --limit
    ignored: tuple[str, ...]  # directories of the zoo that were not entered: hidden ones, ``tmp-*``
    skipped: tuple[Skip, ...]  # checkpoints that cannot be packed, or that a policy leaves out
    notes: tuple[Note, ...]
    text_sources: dict[str, int]  # checkpoints by where their texts come from
    estimated_bytes: int  # bytes of all shards; texts and json are estimates
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
        names = ["found", "excluded", "ignored", "samples", "splits", "text_sources", "estimated_bytes"]
        fields: dict[str, Any] = {name: getattr(self, name) for name in [*names, "fingerprint"]}
        tokens = {name: getattr(layout, name) for name in ("rank", "chunk", "dtype")}
        return {
            **fields,
            "tokens": {"count": layout.num_tokens, **tokens},
            "members": list(self.context.members),
            "matched_by": dict(
                Counter(s.matched_by for job in self.jobs for s in job.samples if s.matched_by)
            ),
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
    candidates = (
        [candidate for candidate in listing.checkpoints if candidate.path in wanted]
        if only
        else listing.checkpoints[: options.limit]
    )
    excluded = listing.excluded + len(listing.checkpoints) - len(candidates)
    surveyed, unread = survey(candidates, options.alpha)
    skipped = [*(Skip(bad.path, bad.reason, bad.fault) for bad in listing.rejected), *unread]
    if not (surveyed or only):
        raise nothing_to_pack(options.zoo, skipped, excluded)
    layout = only.layout if only else choose_layout(surveyed, options.layout, options.zoo)
    teachers, misfits = keep_fitting(surveyed, layout, options.layout)
    skipped += misfits
    if not (teachers or only):
        raise nothing_to_pack(options.zoo, skipped, excluded)
    # What a name or a path means is a matter of the whole zoo, whatever part of it is packed.
    whole = walk_zoo(options.zoo, wanted=wanted) if options.include or options.exclude else listing
    tasks = zoo_tasks(options.zoo, whole.nameable)
    deltas = plan_deltas(teachers, _claimants(whole, options, only), tasks, options, only)
    skipped += deltas.skipped
    left_out = {skip.checkpoint for skip in deltas.skipped}
    teachers = [teacher for teacher in teachers if teacher.path not in left_out]
    tokenizer = None if only or options.text_tokenizer is None else load_tokenizer(options.text_tokenizer)
    conditions, notes = _conditions(tokenizer, options, only)
    samples, texts, faults = join_samples(teachers, deltas, tasks, options)
    skipped += faults
    if not (samples or only):
        raise nothing_to_pack(options.zoo, skipped, excluded)
    context = PackContext(
        zoo=options.zoo,
        out=out or options.out,
        layout=layout,
        members=_members(conditions, deltas),
        cast=options.dtype != "auto",
        alpha=options.alpha,
        texts=options.texts,
        max_texts=options.max_texts,
        seed=options.seed,
        conditions=conditions,
        delta_width=deltas.width,
    )
    jobs = _jobs(samples, context, options, only)
    return Plan(
        options=options,
        context=context,
        jobs=jobs,
        found=len(listing.checkpoints) + len(listing.rejected) + listing.excluded,
        excluded=excluded,
        ignored=listing.ignored,
        skipped=tuple(sorted(skipped, key=lambda skip: skip.checkpoint)),
        notes=(*notes, *deltas.notes, *_empty_splits(jobs, options)),
        text_sources=dict(sorted(Counter(found.source for found in texts).items())),
        estimated_bytes=estimate_bytes(context, texts, len(jobs)),
        fingerprint=_fingerprint(options, jobs),
        tokenizer=tokenizer,
    )


def _claimants(whole: ZooListing, options: PackOptions, only: SetPart | None) -> list[str]:
    """All checkpoints that claim a delta. Of a set those that were there then, as far as it knows them."""
    known = only.known if only else ()
    if only and only.knows_skipped and not (options.include or options.exclude or options.limit):
        return list(known)
    return [*known, *(one.path for one in whole.checkpoints), *(bad.path for bad in whole.rejected)]


def _conditions(
    tokenizer: Any, options: PackOptions, only: SetPart | None
) -> tuple[ConditionSpec | None, list[Note]]:
    if only or tokenizer is None:
        return only.conditions if only else None, []
    spec, note = describe(tokenizer, forms=options.forms, joiner=options.joiner)
    return spec, [Note(checkpoint="", what=note)] if note else []


def _members(conditions: ConditionSpec | None, deltas: DeltaPlan) -> tuple[str, ...]:
    absent = {"texts"} if conditions is None else set()
    absent |= set() if deltas.width else {"delta"}
    return tuple(field for field in SUFFIX if field not in absent)


def _jobs(
    samples: Sequence[PlannedSample], context: PackContext, options: PackOptions, only: SetPart | None
) -> tuple[ShardJob, ...]:
    by_path = {sample.path: sample for sample in samples}
    digest = context.digest()
    assigned = (
        only.shards
        if only
        else assign_shards(
            [(sample.path, sample.task if options.split_by == "task" else sample.path) for sample in samples],
            body_bytes=context.layout.body_bytes,
            shard_bytes=options.shard_bytes,
            seed=options.seed,
            val_fraction=options.split,
        )
    )
    return tuple(
        ShardJob(
            name=shard.name,
            split=shard.split,
            samples=tuple(by_path[path] for path in shard.paths if path in by_path),
            context=digest,
        )
        for shard in assigned
    )


def _empty_splits(jobs: Sequence[ShardJob], options: PackOptions) -> list[Note]:
    """A split that is asked for and gets nothing would be missed only when it is to be read."""
    if not options.split:
        return []
    empty = [split for split in (TRAIN, VAL) if all(job.split != split for job in jobs)]
    groups = "tasks go whole into one split" if options.split_by == "task" else "there are few checkpoints"
    what = (
        f"no checkpoint falls into the split {{}}: {groups}; another --seed, --split or --split-by may help"
    )
    return [Note(checkpoint="", what=what.format(split)) for split in empty]


def _fingerprint(options: PackOptions, jobs: Sequence[ShardJob]) -> str:
    shards = {job.name: [sample.path for sample in job.samples] for job in jobs}
    maps = [list(pair) for pair in options.maps]
    paths = sorted(path for paths in shards.values() for path in paths)
    return blake3_hex(
        dump_json({"options": options.content(), "maps": maps, "paths": paths, "shards": shards})
    )
