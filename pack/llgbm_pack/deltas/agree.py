"""What all deltas of one set must agree on: whose they are, what they were measured with, how wide they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llgbm_pack.deltas.join import JoinResult, Match
from llgbm_pack.deltas.provenance import mixed_provenance
from llgbm_shards.errors import PlanError, UsageError


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
