"""Join the teachers with the delta cache at plan time; every delta is read and verified here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llgbm_pack.delta_lag import LagCorrelation
from llgbm_pack.delta_manifest import DeltaEntry, find_manifest
from llgbm_pack.delta_provenance import mixed_provenance
from llgbm_pack.deltas import DeltaCache
from llgbm_pack.jobs import Note
from llgbm_pack.join import Match, join_deltas
from llgbm_pack.options import PackOptions
from llgbm_pack.survey import Skip, Teacher
from llgbm_shards.errors import CheckpointError, PlanError


@dataclass(slots=True)
class DeltaPlan:
    """The joined deltas.

    Attributes:
        matches: Checkpoint path -> its delta.
        width: Hidden width of the set's deltas; 0 packs none.
        skipped: Checkpoints left out for want of a delta or for a fault of theirs.
        notes: Warnings.
    """

    matches: dict[str, Match] = field(default_factory=dict)
    width: int = 0
    skipped: list[Skip] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def plan_deltas(teachers: Sequence[Teacher], every_path: Sequence[str], options: PackOptions) -> DeltaPlan:
    """Find and verify the delta of each teacher.

    Args:
        teachers: The checkpoints to pack, as far as is known.
        every_path: Paths of all checkpoints of the zoo, packed or not: each claims its own delta, so that a
            checkpoint that is left out does not leave its delta to a namesake.
        options: What is asked for.

    Raises:
        PlanError: No cache, deltas missing under ``--missing-delta error``, a checkpoint with two candidates,
            or deltas that were not measured alike; lists all of it.
    """
    plan = DeltaPlan()
    if options.deltas is None:
        return plan
    entries = _entries(options.deltas)
    wanted = {teacher.path for teacher in teachers}
    paths = list(dict.fromkeys([*(teacher.path for teacher in teachers), *every_path]))
    joined = join_deltas(paths, zoo_root=options.zoo, entries=entries, maps=options.maps)
    _refuse_ambiguous([row for row in joined.ambiguous if row[0] in wanted], options)
    _apply_missing_policy([path for path in joined.missing if path in wanted], plan, options)
    matches = {path: match for path, match in joined.matches.items() if path in wanted}
    _refuse_mixed(matches, options)
    plan.matches = _verified(matches, entries, plan, options.deltas)
    plan.notes += _stale(teachers, plan.matches)
    return plan


def _entries(directory: Path) -> tuple[DeltaEntry, ...]:
    if find_manifest(directory) is None:
        raise PlanError(
            "no delta cache",
            where=str(directory),
            expected="manifest.json or delta_manifest.json",
            do="Name the directory of the delta cache with --deltas, or leave --deltas out.",
        )
    return DeltaCache(directory).entries()


def _refuse_ambiguous(ambiguous: Sequence[tuple[str, list[DeltaEntry]]], options: PackOptions) -> None:
    if ambiguous:
        rows = [
            f"{path}: " + " or ".join(f"{entry.key} ({entry.path})" for entry in found)
            for path, found in ambiguous
        ]
        raise PlanError(
            f"{len(rows)} checkpoints with more than one delta that could be theirs",
            where=str(options.deltas),
            got="\n  " + "\n  ".join(rows),
            do="\nRewrite the cache's paths with --map OLD=NEW, or remove the wrong entries.",
        )


def _apply_missing_policy(missing: Sequence[str], plan: DeltaPlan, options: PackOptions) -> None:
    if missing and options.missing_delta == "error":
        raise PlanError(
            f"{len(missing)} checkpoints have no delta",
            where=str(options.deltas),
            got="\n  " + "\n  ".join(missing),
            do="\nCompute them, or say --missing-delta skip (leave these out) or zeros (pack zeros, has_delta false).",
        )
    if options.missing_delta == "skip":
        plan.skipped += [Skip(path, "no delta (--missing-delta skip)", fault=False) for path in missing]


def _refuse_mixed(matches: Mapping[str, Match], options: PackOptions) -> None:
    mixed = mixed_provenance(match.entry for match in matches.values())
    if mixed:
        raise PlanError(
            f"deltas of more than one {' and more than one '.join(mixed)}",
            where=str(options.deltas),
            expected="one a set",
            got="; ".join(mixed.values()),
            do="Pack one set for each, with --include or with separate delta caches.",
        )


def _verified(
    matches: Mapping[str, Match], entries: Sequence[DeltaEntry], plan: DeltaPlan, directory: Path
) -> dict[str, Match]:
    """Load every joined delta, in manifest order; faults skip their checkpoint."""
    owner = {match.entry.key: path for path, match in matches.items()}
    widths: dict[str, int] = {}
    lag = LagCorrelation()
    for entry in entries:
        path = owner.get(entry.key)
        if path is None:
            continue
        try:
            loaded = entry.load()
        except CheckpointError as error:
            plan.skipped.append(Skip(path, str(error)))
            continue
        widths[path] = len(loaded.array)
        lag.add(loaded.array)
        if loaded.note:
            plan.notes.append(Note(checkpoint=path, what=f"delta {loaded.note}"))
    plan.width = _common_width(widths, directory)
    for path, width in widths.items():
        if width != plan.width:
            reason = f"delta of another width than most of the set: expected {plan.width}, got {width}"
            plan.skipped.append(Skip(path, reason))
    if lag.suspicious:
        plan.notes.append(Note(checkpoint="", what=_lag_warning(lag)))
    return {path: match for path, match in matches.items() if widths.get(path) == plan.width}


def _common_width(widths: Mapping[str, int], directory: Path) -> int:
    counts = Counter(widths.values()).most_common(2)
    if not counts:
        raise PlanError(
            "no delta belongs to any checkpoint of the zoo",
            where=str(directory),
            do="Check --deltas; rewrite its paths with --map OLD=NEW; or leave --deltas out.",
        )
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        got = f"{counts[0][0]} and {counts[1][0]}, {counts[0][1]} deltas each"
        raise PlanError(
            "no width that most deltas share", where=str(directory), expected="one width", got=got
        )
    return counts[0][0]


def _lag_warning(lag: LagCorrelation) -> str:
    return (
        f"consecutive deltas of the cache correlate at {lag.value:.2f} ({lag.pairs} pairs): the mark of adapters "
        "injected into an already adapted base model; compute the deltas again with a fresh base for each adapter"
    )


def _stale(teachers: Sequence[Teacher], matches: Mapping[str, Match]) -> list[Note]:
    notes = []
    for teacher in teachers:
        match = matches.get(teacher.path)
        if match and teacher.weights.stat().st_mtime_ns > match.entry.file.stat().st_mtime_ns:
            notes.append(
                Note(checkpoint=teacher.path, what="stale delta: the checkpoint is newer than its delta")
            )
    return notes
