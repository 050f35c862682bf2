"""What all deltas of one set must agree on: whose they are, what they were measured with, how wide they are.

And the lint for deltas that were measured between neighbours instead of against the base model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.join import JoinResult, Load, Match
from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_shards.errors import CheckpointError, PlanError, UsageError
from llgbm_shards.npy import vector_norm

#: A mean correlation of consecutive deltas below this is the mark of the fault.
LAG_FAULT_BELOW: Final = -0.35
#: Pairs of deltas without which a mean correlation says nothing.
LAG_MIN_PAIRS: Final = 8
_WORDS: Final = {"base_model": "base model", "probes": "set of probes", "layer": "layer", "dtype": "dtype"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """How a disagreement is told: by a build, or by a dataset."""

    kind: type[PlanError | UsageError]
    where: str  # the cache, as the user knows it
    maps: str  # how paths of the cache are rewritten
    apart: str  # how deltas that are unlike are kept apart
    most: str  # what most of the deltas are called

    def of_rows(self, what: str, rows: Sequence[str], do: str) -> None:
        """Raise, if there are rows."""
        if rows:
            got = "\n  " + "\n  ".join(rows)
            raise self.kind(f"{len(rows)} {what}", where=self.where, got=got, do=f"\n{do}")


@dataclass(frozen=True, slots=True)
class Settled:
    """Deltas that are beyond doubt."""

    matches: dict[str, Match]  # the delta of each checkpoint, by its path
    missing: list[str]  # checkpoints without one
    notes: list[tuple[str, str]]  # (checkpoint, what) that should be told


def settle(joined: JoinResult, wanted: Collection[str], refuse: Refusal) -> Settled:
    """Refuse what the join of a whole zoo leaves in doubt of the wanted checkpoints; tell what is right but unexpected.

    Raises:
        PlanError, UsageError: By ``refuse``: a checkpoint whose delta is not certain.
    """
    refuse.of_rows(
        "checkpoints with more than one delta that could be theirs, or one that contradicts itself",
        [str(doubt) for doubt in joined.doubts if doubt.checkpoint in wanted],
        f"Rewrite the cache's paths with {refuse.maps}, or remove the wrong entries.",
    )
    matches = {path: match for path, match in joined.matches.items() if path in wanted}
    notes = [(path, match.note) for path, match in matches.items() if match.note]
    return Settled(matches, [path for path in joined.missing if path in wanted], notes)


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
    mixed = {}
    for field, words in _WORDS.items():
        own = field == "probes"
        counts = Counter(getattr(entry, field) for entry in joined if not (own and entry.probes_file))
        if len(counts) > 1:
            mixed[words] = ", ".join(
                f"{value or '(unknown)'}: {count}" for value, count in counts.most_common()
            )
    return mixed


def verify(
    deltas: Iterable[tuple[str, DeltaEntry]], load: Load, refuse: Refusal
) -> tuple[int, dict[str, str]]:
    """Read the delta of each checkpoint once; none is kept.

    Returns:
        The width that most of the sound ones have, 0 when none is sound; and, by checkpoint, what is wrong with each
        delta that is not sound or of another width.

    Raises:
        PlanError, UsageError: By ``refuse``: two widths have most of them.
    """
    widths: dict[str, int] = {}
    faults: dict[str, str] = {}
    for path, entry in deltas:
        try:
            widths[path] = len(load(entry))
        except CheckpointError as error:
            faults[path] = str(error)
    most = _common_width(widths, refuse)
    for path, width in widths.items():
        if width != most:
            faults[path] = f"delta of another width than {refuse.most}: expected {most}, got {width}"
    return most, faults


def _common_width(widths: Mapping[str, int], refuse: Refusal) -> int:
    ranked = Counter(widths.values()).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        got = f"{ranked[0][0]} and {ranked[1][0]}, {ranked[0][1]} deltas each"
        what = "no width that most deltas share"
        raise refuse.kind(what, where=refuse.where, expected="one width", got=got)
    return ranked[0][0] if ranked else 0


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
