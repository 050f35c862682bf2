"""Several committed sets taken as one: what they must have in common, and what fields they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm_loader.options import FIELDS, MEMBER, SelectOptions
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.record import CommitRecord
from llgbm_shards.shardset import ShardSet
from llgbm_shards.texts import ConditionSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Common:
    """What all the sets have in common.

    Attributes:
        layout: dtype, rank, chunk, token order and module table.
        spec: What rebuilds conditions; ``forms`` are those that every set has. None without texts.
        delta_width: Hidden width of the deltas, 0 without deltas.
        fields: Fields that are read.
    """

    layout: Layout
    spec: ConditionSpec | None
    delta_width: int
    fields: tuple[str, ...]


def open_sets(options: SelectOptions) -> list[ShardSet]:
    """Open the sets.

    Raises:
        DamageError: One is unfinished or damaged.
        UsageError: One is not the expected one, or is named twice.
    """
    digests = options.expect_digest or (None,) * len(options.paths)
    sets = [ShardSet(path, expect_digest=digest) for path, digest in zip(options.paths, digests, strict=True)]
    seen: dict[str, Path] = {}
    for opened in sets:
        if opened.digest in seen:
            raise UsageError(
                "the same set twice", where=str(opened.path), got=f"a copy of {seen[opened.digest]}"
            )
        seen[opened.digest] = opened.path
    return sets


def find_common(sets: Sequence[ShardSet], fields: Sequence[str] | None) -> Common:
    """What the sets have in common, and the fields to read.

    Args:
        sets: The opened sets.
        fields: The fields the user named; None for all there are.

    Raises:
        UsageError: A named field is absent from a set, or the sets do not fit together.
    """
    wanted = _resolve_fields(sets, fields)
    records = [opened.record for opened in sets]
    if {"tokens", "scales"} & set(wanted):
        _equal(sets, [record.layout for record in records], "weight layout")
    if "delta" in wanted:
        _equal(sets, [record.delta_width for record in records], "delta width")
    return Common(
        layout=records[0].layout,
        spec=_common_spec(sets) if "condition" in wanted else None,
        delta_width=records[0].delta_width if "delta" in wanted else 0,
        fields=wanted,
    )


def available_fields(record: CommitRecord) -> tuple[str, ...]:
    """Fields that a set has."""
    return tuple(field for field in FIELDS if MEMBER[field] in record.members)


def _resolve_fields(sets: Sequence[ShardSet], fields: Sequence[str] | None) -> tuple[str, ...]:
    if fields is None:
        _equal(sets, [available_fields(opened.record) for opened in sets], "fields; name those you want")
        return available_fields(sets[0].record)
    for opened in sets:
        there = available_fields(opened.record)
        absent = [field for field in fields if field not in there]
        if absent:
            raise UsageError(
                f"the set has no {' and no '.join(absent)}",
                where=str(opened.path),
                expected="some of " + ", ".join(there),
                got=", ".join(fields),
                do="Name fields that the set has, or none to take all.",
            )
    return tuple(field for field in FIELDS if field in fields)


def _common_spec(sets: Sequence[ShardSet]) -> ConditionSpec:
    texts: list[dict[str, Any]] = [opened.record.texts for opened in sets]
    _equal(sets, [{**text, "forms": []} for text in texts], "text tokenizer")
    forms = [form for form in texts[0]["forms"] if all(form in text["forms"] for text in texts)]
    try:
        return ConditionSpec.from_json({**texts[0], "forms": forms})
    except HeaderError as error:
        raise error.as_(DamageError, shard=str(sets[0].path), expected="") from error


def _equal(sets: Sequence[ShardSet], values: Sequence[Any], what: str) -> None:
    for opened, value in zip(sets, values, strict=True):
        if value != values[0]:
            raise UsageError(
                f"the sets do not fit together: they differ in {what}",
                where=f"{sets[0].path} and {opened.path}",
                expected=f"{values[0]}"[:200],
                got=f"{value}"[:200],
            )
