"""What all deltas of one set must agree on: whose they are, what they were measured with, how wide they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.join import JoinResult, Match
from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.deltas.provenance import mixed_provenance
from llgbm_shards.errors import CheckpointError, PlanError, UsageError

Load = Callable[[DeltaEntry], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """How a disagreement is told: by a build, or by a dataset.

    Attributes:
        kind: The error.
        where: The cache, as the user knows it.
        maps: How paths of the cache are rewritten.
        apart: How deltas that are unlike are kept apart.
        most: What most of the deltas are called.
    """

    kind: type[PlanError | UsageError]
    where: str
    maps: str
    apart: str
    most: str

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


def settle(joined: JoinResult, wanted: Collection[str], refuse: Refusal) -> Settled:
    """Refuse what a join leaves in doubt, and tell what is right but unexpected.

    Args:
        joined: The join of the whole zoo.
        wanted: The checkpoints that count.
        refuse: How to refuse.

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


def verify(
    deltas: Iterable[tuple[str, DeltaEntry]], load: Load, refuse: Refusal
) -> tuple[int, dict[str, str]]:
    """Read each delta once; none is kept.

    Args:
        deltas: Checkpoints and their deltas.
        load: Reads one.
        refuse: How to refuse.

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
    counts = Counter(widths.values()).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        got = f"{counts[0][0]} and {counts[1][0]}, {counts[0][1]} deltas each"
        raise refuse.kind(
            "no width that most deltas share", where=refuse.where, expected="one width", got=got
        )
    return counts[0][0] if counts else 0
