"""Join the teachers with the delta cache at plan time; every delta is read and verified here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.agree import LagCorrelation, Refusal, refuse_mixed, settle, verify
from llgbm_pack.deltas.cache import DeltaCache
from llgbm_pack.deltas.join import Match, join_deltas
from llgbm_pack.deltas.manifest import DeltaEntry, find_manifest
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.overlay_options import AnyOptions, OverlayOptions
from llgbm_pack.plan.survey import Teacher
from llgbm_pack.plan.values import Note, SetPart, Skip
from llgbm_shards.errors import PlanError


@dataclass(slots=True)
class DeltaPlan:
    """The joined deltas."""

    matches: dict[str, Match] = field(default_factory=dict)  # checkpoint path -> its delta
    width: int = 0  # hidden width of the set's deltas; 0 packs none
    skipped: list[Skip] = field(default_factory=list)  # they have no delta, or a faulty one
    notes: list[Note] = field(default_factory=list)


def plan_deltas(
    teachers: Sequence[Teacher],
    every_path: Sequence[str],
    tasks: Mapping[str, str],
    options: PackOptions,
    only: SetPart | None = None,
) -> DeltaPlan:
    """Find and verify the delta of each teacher; arguments and errors as of :func:`join_and_verify`."""
    wanted = [one.path for one in teachers if only is None or one.path in only.with_delta]
    claimants = [*(teacher.path for teacher in teachers), *every_path]
    plan = join_and_verify(wanted, claimants, tasks, options.zoo, options, only)
    plan.notes += [
        Note(checkpoint=teacher.path, what="stale delta: the checkpoint is newer than its delta")
        for teacher in teachers
        if only is None
        and teacher.path in plan.matches
        and _is_stale(teacher, plan.matches[teacher.path].entry)
    ]
    return plan


def join_and_verify(
    wanted: Collection[str],
    claimants: Iterable[str],
    tasks: Mapping[str, str],
    zoo: Path,
    options: AnyOptions,
    only: SetPart | None = None,
) -> DeltaPlan:
    """Find and verify the delta of each wanted checkpoint.

    All checkpoints of the zoo (``claimants``), packed or not, claim their own deltas: one that is left out does not
    leave its delta to a namesake. For a part of a set (``only``) the set says who has a delta, and the deltas
    are verified as they are packed.

    Raises:
        PlanError: No cache, deltas missing under ``--missing-delta error``, a checkpoint with two candidates,
            a delta that contradicts itself or its task, or deltas that were not measured alike; lists all of it.
    """
    plan = DeltaPlan(width=only.delta_width if only else 0)
    wanted = set(wanted)
    if options.deltas is None or not wanted:
        return plan
    entries = _entries(options.deltas)
    every = list(dict.fromkeys(claimants))
    joined = join_deltas(every, zoo_root=zoo, entries=entries, maps=options.maps, tasks=tasks)
    refuse = _refusal(options.deltas)
    settled = settle(joined, wanted, refuse)
    if only:
        plan.matches = settled.matches
        lost = "no delta found (give --map as for the build)"
        plan.skipped = [Skip(path, lost) for path in settled.missing]
        return plan
    plan.notes += [Note(checkpoint=path, what=what) for path, what in settled.notes]
    plan.skipped += _skipped_without(settled.missing, options)
    refuse_mixed(settled.matches, refuse)
    _take_sound(plan, settled.matches, entries, refuse)
    return plan


def _refusal(directory: Path) -> Refusal:
    return Refusal(
        kind=PlanError,
        where=str(directory),
        maps="--map OLD=NEW",
        apart="Pack one set for each, with --include or with separate delta caches.",
        most="most of the set",
    )


def _entries(directory: Path) -> tuple[DeltaEntry, ...]:
    if find_manifest(directory) is None:
        raise PlanError(
            "no delta cache",
            where=str(directory),
            expected="manifest.json or delta_manifest.json",
            do="Name the directory of the delta cache with --deltas, or leave --deltas out.",
        )
    return DeltaCache(directory).entries()


def _skipped_without(missing: Sequence[str], options: AnyOptions) -> list[Skip]:
    """What ``--missing-delta`` says of checkpoints without a delta."""
    if missing and options.missing_delta == "error":
        skip = "" if isinstance(options, OverlayOptions) else "skip (leave these out) or "
        raise PlanError(
            f"{len(missing)} checkpoints have no delta",
            where=str(options.deltas),
            got="\n  " + "\n  ".join(missing),
            do=f"\nCompute them, or say --missing-delta {skip}zeros (pack zeros, has_delta false).",
        )
    left_out = missing if options.missing_delta == "skip" else ()
    return [Skip(path, "no delta (--missing-delta skip)", fault=False) for path in left_out]


def _take_sound(
    plan: DeltaPlan, matches: Mapping[str, Match], entries: Sequence[DeltaEntry], refuse: Refusal
) -> None:
    """Load every joined delta, in manifest order, and take the sound ones; a faulty one skips its checkpoint."""
    owner = {match.entry.key: path for path, match in matches.items()}
    lag = LagCorrelation()

    def load(entry: DeltaEntry) -> NDArray[np.float32]:
        loaded = entry.load()
        lag.add(loaded.array)
        if loaded.note:
            plan.notes.append(Note(checkpoint=owner[entry.key], what=f"delta {loaded.note}"))
        return loaded.array

    deltas = ((owner[one.key], one) for one in entries if one.key in owner)
    plan.width, faults = verify(deltas, load, refuse)
    if not plan.width:
        raise PlanError(
            "no delta belongs to any checkpoint of the zoo",
            where=refuse.where,
            do="Check --deltas; rewrite its paths with --map OLD=NEW; or leave --deltas out.",
        )
    plan.skipped += [Skip(path, reason) for path, reason in faults.items()]
    if lag.suspicious:
        plan.notes.append(Note(checkpoint="", what=_lag_warning(lag)))
    plan.matches = {path: match for path, match in matches.items() if path not in faults}


def _lag_warning(lag: LagCorrelation) -> str:
    return (
        f"consecutive deltas of the cache correlate at {lag.value:.2f} ({lag.pairs} pairs): the mark of adapters "
        "injected into an already adapted base model; compute the deltas again with a fresh base for each adapter"
    )


def _is_stale(teacher: Teacher, entry: DeltaEntry) -> bool:
    return teacher.weights.stat().st_mtime_ns > entry.file.stat().st_mtime_ns
