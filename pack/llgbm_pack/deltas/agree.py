"""What all deltas of one set must agree on: whose they are, what they were measured with, how wide they are.

And the lint for deltas that were measured between neighbours instead of against the base model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.join import Ambiguity, JoinResult, Match
from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_shards.errors import CheckpointError, PlanError, UsageError
from llgbm_shards.npy import vector_norm

Load = Callable[[DeltaEntry], NDArray[np.float32]]

#: A mean correlation of consecutive deltas below this is the mark of the fault.
LAG_FAULT_BELOW: Final = -0.35
#: Pairs of deltas without which a mean correlation says nothing.
LAG_MIN_PAIRS: Final = 8
_WORDS: Final = {"base_model": "base model", "probes": "set of probes", "layer": "layer", "dtype": "dtype"}
_DISTANT: Final = "joined with a delta of another folder by its last component only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """How a disagreement is told: by a build, or by a dataset.

    Attributes:
        kind: The error.
        where: The cache, as the user knows it.
        maps: How paths of the cache are rewritten.
        apart: How deltas that are unlike are kept apart.
    """

    kind: type[PlanError | UsageError]
    where: str
    maps: str
    apart: str

    def of_rows(self, what: str, rows: Sequence[str], do: str) -> None:
        """Raise, if there are rows."""
        if rows:
            got = "\n  " + "\n  ".join(rows)
            raise self.kind(f"{len(rows)} {what}", where=self.where, got=got, do=f"\n{do}")


@dataclass(frozen=True, slots=True)
class Settled:
    """Deltas that are beyond doubt.

    Attributes:
        matches: The delta of each checkpoint, by its path.
        missing: Checkpoints without one.
        notes: (checkpoint, what) that should be told.
    """

    matches: dict[str, Match]
    missing: list[str]
    notes: list[tuple[str, str]]


def settle(
    joined: JoinResult,
    wanted: Collection[str],
    load: Load,
    refuse: Refusal,
    tasks: Mapping[str, str] | None = None,
) -> Settled:
    """Refuse what a join leaves in doubt, and tell what is right but unexpected.

    Args:
        joined: The join of the whole zoo.
        wanted: The checkpoints that count.
        load: Reads a delta, to see whether candidates are equal.
        refuse: How to refuse.
        tasks: Tasks of checkpoints that their paths do not tell.

    Raises:
        PlanError, UsageError: By ``refuse``: a checkpoint with two candidates that differ, a delta whose name and path
            contradict each other, a delta of another task.
    """
    equal = {row.path: row for row in joined.ambiguous if row.path in wanted and are_equal(row, load)}
    refuse.of_rows(
        "checkpoints with more than one delta that could be theirs",
        [
            f"{row.path}: " + " or ".join(f"{entry.key} ({entry.path})" for entry in row.entries)
            for row in joined.ambiguous
            if row.path in wanted and row.path not in equal
        ],
        f"Rewrite the cache's paths with {refuse.maps}, or remove the wrong entries.",
    )
    refuse.of_rows(
        "deltas whose name means one checkpoint and whose path means another",
        [
            f"{row.entry.key} ({row.entry.path}): by its name {row.by_name}, by its path {row.by_path}"
            for row in joined.contradictions
            if row.by_name in wanted or row.by_path in wanted
        ],
        "Compute them again, or put the cache's manifest right.",
    )
    matches = {path: match for path, match in joined.matches.items() if path in wanted}
    distant = {path: matches[path].entry for path in joined.distant if path in matches}
    refuse.of_rows(
        "deltas of another task than their checkpoint's",
        [
            f"{path}: {entry.key} ({entry.path}) of task {entry.task}"
            for path, entry in distant.items()
            if entry.task and entry.task not in {*path.split("/"), (tasks or {}).get(path, "")}
        ],
        f"Rewrite the cache's paths with {refuse.maps} where a task was renamed, or leave these out.",
    )
    notes = [(path, f"{_DISTANT}: {entry.path}") for path, entry in distant.items()]
    for path, row in equal.items():
        matches[path] = Match(row.entries[0], row.matched_by)
        listed = " and ".join(f"{entry.key} ({entry.path})" for entry in row.entries)
        notes.append((path, f"more than one delta that could be its own, with equal values: {listed}"))
    return Settled(matches, [path for path in joined.missing if path in wanted], notes)


def are_equal(row: Ambiguity, load: Load) -> bool:
    """Whether all candidates are deltas of one checkpoint, sound, and equal to the bit."""
    if row.shared or len(row.entries) < 2:
        return False
    try:
        first, *others = (load(entry) for entry in row.entries)
    except CheckpointError:
        return False
    return all(first.tobytes() == other.tobytes() for other in others)


def refuse_mixed(matches: Mapping[str, Match], refuse: Refusal) -> None:
    """Refuse deltas of more than one base model, list of probes, layer or dtype.

    Raises:
        PlanError, UsageError: By ``refuse``.
    """
    mixed = mixed_provenance(match.entry for match in matches.values())
    if mixed:
        raise refuse.kind(
            f"deltas of more than one {' and more than one '.join(mixed)}",
            where=refuse.where,
            expected="one",
            got="; ".join(mixed.values()),
            do=refuse.apart,
        )


def mixed_provenance(entries: Iterable[DeltaEntry]) -> dict[str, str]:
    """What deltas differ in, and how many were measured in each way: such deltas are not comparable.

    Probes of an adapter's own, as the second form of cache may have them, are no difference.
    """
    joined = list(entries)
    found = {}
    for field, words in _WORDS.items():
        own = field == "probes"
        counts = Counter(getattr(entry, field) for entry in joined if not (own and entry.probes_file))
        if len(counts) > 1:
            found[words] = ", ".join(
                f"{value or '(unknown)'}: {count}" for value, count in counts.most_common()
            )
    return found


def common_width(widths: Mapping[str, int], refuse: Refusal) -> int:
    """The width that most deltas have; 0 when there are none.

    Raises:
        PlanError, UsageError: By ``refuse``: two widths have most of them.
    """
    counts = Counter(widths.values()).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        got = f"{counts[0][0]} and {counts[1][0]}, {counts[0][1]} deltas each"
        raise refuse.kind(
            "no width that most deltas share", where=refuse.where, expected="one width", got=got
        )
    return counts[0][0] if counts else 0


class LagCorrelation:
    """Mean correlation of consecutive deltas, taken as they come by.

    Where adapters were injected into an already adapted base, delta i is ``activation[i] - activation[i-1]``, and
    neighbours share one activation with opposite sign: their correlation is near -0.5 instead of near or above 0.
    """

    def __init__(self) -> None:
        self._last: NDArray[np.float64] | None = None
        self._sum = 0.0
        self.pairs = 0

    def add(self, delta: NDArray[np.float32]) -> None:
        """Take the next delta in the manifest's order, (hidden,)."""
        row = delta.astype(np.float64)
        norm = vector_norm(delta)
        unit = row / norm if norm else None
        if unit is not None and self._last is not None and self._last.size == unit.size:
            self._sum += float(self._last @ unit)
            self.pairs += 1
        self._last = unit

    @property
    def value(self) -> float | None:
        """The mean, None with fewer than 8 pairs."""
        return self._sum / self.pairs if self.pairs >= LAG_MIN_PAIRS else None

    @property
    def suspicious(self) -> bool:
        """Whether the deltas look like differences of neighbours."""
        return self.value is not None and self.value < LAG_FAULT_BELOW
