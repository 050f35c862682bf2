"""Join checkpoints with deltas by whole path components; a wrong join is worse than none.

The rules, in this order; for each delta the first one that gives it to any checkpoint holds:

1. ``exact``: the path the cache recorded (after ``--map``) is the checkpoint's path. The zoo may be spelled in any way
   there and on the command line (relative to the working directory, through links): it is where it really lies.
2. ``relative``: it is the checkpoint's path relative to the zoo.
3. ``tail``: the longest tail of whole components that the two paths share.
4. ``name``: the cache's name of the adapter (second form) is the checkpoint's last component, or its whole relative
   path, and belongs to one checkpoint of the zoo.

A checkpoint is joined when one delta is its own and no other checkpoint's. With more on either side all of them are
refused, by whatever rule they came: no rule takes a delta before another looks. Only where all deltas of a checkpoint
are equal, to the byte, one is taken and told. A delta whose path is one checkpoint's and whose name is another's
contradicts itself, and is refused for both.

A closing ``adapter`` folder counts for neither side in 3 and 4: ``zoo/x/adapter`` and ``zoo/x`` are the same adapter.

Where a shared tail ends, two folders disagree. They may be one folder renamed or moved, or two folders that happen to
hold adapters of equal names. A tail therefore joins nothing (the pair stays apart) when

* the tail names no adapter in particular (``seed_0``, ``run3/checkpoint-300``: only numbers and common words) and
  does not cover the checkpoint's whole path in the zoo;
* the cache knows the checkpoint's folder at that height, or the zoo knows the delta's: then neither was renamed
  (``task1/x`` is not ``task2/x`` when the cache holds ``task2/y``). A tail of two or more components that covers the
  whole path in the zoo and names an adapter is exempt: the zoo was moved.

So a renamed task joins by tail when its adapters' names are unique; ``--map OLD=NEW`` joins the rest. A tail is lone,
and told, when the folders above differ, no more than one of its components names an adapter in particular
(``foo/checkpoint-300``), and it does not cover a path of two or more components in the zoo.

A tail or a name that does not hold the task's folder is refused when the cache names another task for the delta than the
zoo does, by its manifest or any folder of the checkpoint's path. Where paths are equal, the task does not matter.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.deltas.paths import rewrite, split_path, unwrap
from llgbm_pack.deltas.rules import Claim, Rules
from llgbm_shards.errors import CheckpointError

_LISTED: Final = 16

Load = Callable[[DeltaEntry], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Match:
    """A joined delta."""

    entry: DeltaEntry
    matched_by: str  # ``exact``, ``relative``, ``tail`` or ``name``
    note: str = ""  # what a person should know of this join, or empty


@dataclass(frozen=True, slots=True)
class Doubt:
    """A checkpoint whose delta is not certain."""

    checkpoint: str  # its relative path
    entries: list[DeltaEntry]  # the deltas in question in the order given, at most 16 of them
    why: str = ""  # what is wrong, when it is not their number; or empty

    def __str__(self) -> str:
        listed = " or ".join(map(str, self.entries))
        return f"{self.checkpoint}: {listed}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinResult:
    """What was joined with what, and what was not; every checkpoint is in one of the three."""

    matches: dict[str, Match] = field(default_factory=dict)  # the delta of each, by relative path
    missing: list[str] = field(default_factory=list)  # checkpoints without a delta, in the order given
    # Checkpoints with more than one delta, with a delta that others claim too, or with one that contradicts itself;
    # in the order given.
    doubts: list[Doubt] = field(default_factory=list)


def join_deltas(
    checkpoints: Sequence[str],
    *,
    zoo_root: str | os.PathLike[str],
    entries: Sequence[DeltaEntry],
    maps: Sequence[tuple[str, str]] = (),
    tasks: Mapping[str, str] | None = None,
    load: Load | None = None,
) -> JoinResult:
    """Find the delta of each checkpoint.

    Args:
        checkpoints: POSIX paths relative to the zoo, each once; ``.`` is the zoo itself.
        zoo_root: The zoo as the user gave it.
        entries: The cache's entries.
        maps: (old, new) prefixes to rewrite in the cache's paths, whole components only; the first that fits is taken.
        tasks: Tasks the zoo's own manifest names, by checkpoint; the folders of its path count beside. None: what is
            above the checkpoints is no zoo, and no task is known.
        load: Reads a delta, (hidden,) float32, to compare two of one checkpoint; from its file by default.
    """
    paths = [rewrite(split_path(entry.path), maps) for entry in entries]
    rules = Rules(checkpoints, os.fspath(zoo_root), paths, [entry.name for entry in entries])
    claims: dict[int, list[Claim]] = defaultdict(list)
    for claim in rules.claims():
        for c in claim.owners:
            claims[c].append(claim)
    join = _Join(checkpoints, entries, rules, tasks, load or _load)
    for c in range(len(checkpoints)):
        join.settle(c, claims[c])
    return join.result


@dataclass(frozen=True, slots=True)
class _Join:
    """What follows from the claims on each checkpoint."""

    checkpoints: Sequence[str]
    entries: Sequence[DeltaEntry]
    rules: Rules
    tasks: Mapping[str, str] | None
    load: Load
    result: JoinResult = field(default_factory=JoinResult)

    def settle(self, c: int, claims: Sequence[Claim]) -> None:
        """Put one checkpoint among the matches, the missing or the doubts."""
        path, why = self.checkpoints[c], self._why_shared(c, claims)
        listed = [(e, claim) for claim in claims for e in islice(claim.entries, _LISTED + 1)]
        entries = [self.entries[e] for e in sorted(e for e, _ in listed)]
        if not claims:
            self.result.missing.append(path)
        elif why or (len(entries) > 1 and not self._equal(entries)):
            self.result.doubts.append(Doubt(path, entries[:_LISTED], why))
        else:
            # Of equal ones always the same, in whatever order they are listed.
            e, claim = min(listed, key=lambda one: self._rank(c, *one))
            self._join(c, self.entries[e], claim, entries)

    def _rank(self, c: int, e: int, claim: Claim) -> tuple[bool, bool, str]:
        entry = self.entries[e]
        return self._is_of_another_task(c, entry, claim), self.rules.is_lone(c, claim), entry.key

    def _join(self, c: int, entry: DeltaEntry, claim: Claim, entries: Sequence[DeltaEntry]) -> None:
        path, notes = self.checkpoints[c], []
        if self._is_of_another_task(c, entry, claim):
            why = f"joined by {self._means(c, claim)}, and the cache calls its task {entry.task!r}"
            self.result.doubts.append(Doubt(path, [entry], why))
            return
        if self.rules.is_lone(c, claim):
            notes.append(f"delta joined by {self._means(c, claim)}: it was recorded as {entry.path}")
        if len(entries) > 1:
            listed = ", ".join(map(str, entries))
            notes.append(f"{len(entries)} equal deltas are recorded for it: {listed}; {entry.key} is taken")
        self.result.matches[path] = Match(entry, claim.rule, "; ".join(notes))

    def _why_shared(self, c: int, claims: Sequence[Claim]) -> str:
        for claim in claims:
            if claim.says:
                return claim.says
            others = [self.checkpoints[other] for other in islice(claim.owners, 2) if other != c]
            if others:
                more = "" if len(claim.owners) == 2 else f" or another of {len(claim.owners)} checkpoints"
                return f"which could as well be {others[0]}'s{more}"
        return ""

    def _equal(self, entries: Sequence[DeltaEntry]) -> bool:
        """Whether all are the same vector, to the bit; more than are listed are not compared."""
        if len(entries) > _LISTED:
            return False
        try:
            first = self.load(entries[0]).tobytes()
            return all(self.load(entry).tobytes() == first for entry in entries[1:])
        except CheckpointError:
            return False  # all of them are listed

    def _means(self, c: int, claim: Claim) -> str:
        if claim.rule == "name":
            return "its name alone"
        shared = "/".join(self.rules.shared(c, claim))
        return "its last folder alone" if claim.height == 1 else f"its last folders alone ({shared})"

    def _is_of_another_task(self, c: int, entry: DeltaEntry, claim: Claim) -> bool:
        """Whether a tail or a name that does not hold the task's folder is of a task that is not the checkpoint's."""
        shared, path = self.rules.shared(c, claim), unwrap(self.rules.relative[c])
        if self.tasks is None or not (entry.task and shared):
            return False
        manifest = self.tasks.get(self.checkpoints[c], "")
        if len(shared) >= len(path) > 1 or not {manifest, entry.task}.isdisjoint(shared[:-1]):
            return False
        own = {*path[:-1], manifest} - {""}
        return bool(own) and entry.task not in own


def _load(entry: DeltaEntry) -> NDArray[np.float32]:
    return entry.load().array
