"""Several committed sets taken as one: what they must have in common, and what fields they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm_loader.layers import LayeredSet, open_overlays
from llgbm_loader.options import DEFAULT_FIELDS, FIELDS, MEMBER, SelectOptions
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.shardset import ShardSet
from llgbm_shards.texts import ConditionSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Common:
    """What all the sets have in common."""

    layout: Layout
    spec: ConditionSpec | None  # its forms are those that every set has; None without texts
    delta_width: int  # hidden width of the deltas, 0 without deltas
    fields: tuple[str, ...]  # those that are read


def open_sets(options: SelectOptions) -> list[LayeredSet]:
    """Open the sets and their overlays; UsageError where one is not the expected one or is named twice."""
    digests = options.expect_digest or (None,) * len(options.paths)
    sets = [ShardSet(path, expect_digest=digest) for path, digest in zip(options.paths, digests, strict=True)]
    seen: dict[str, Path] = {}
    for shard_set in sets:
        if shard_set.digest in seen:
            raise UsageError(
                "the same set twice", where=str(shard_set.path), got=f"a copy of {seen[shard_set.digest]}"
            )
        seen[shard_set.digest] = shard_set.path
    return open_overlays(sets, options.overlays)


def find_common(sets: Sequence[LayeredSet], fields: Sequence[str] | None) -> Common:
    """What the sets have in common, with the fields to read: those the user named, None for all there are.

    UsageError where a named field is absent from a set, or the sets do not fit together.
    """
    wanted = _resolve_fields(sets, fields)
    layouts = [one.base.layout for one in sets]
    widths = [one.record_of("delta").delta_width for one in sets]
    if {"tokens", "weights", "scales"} & set(wanted):
        _same_layout(sets, layouts)
    if "delta" in wanted:
        _equal(sets, widths, "delta width")
    return Common(
        layout=layouts[0],
        spec=_common_spec(sets) if "condition" in wanted else None,
        delta_width=widths[0] if "delta" in wanted else 0,
        fields=wanted,
    )


def _available_fields(layered: LayeredSet) -> tuple[str, ...]:
    return tuple(field for field in FIELDS if layered.gives(MEMBER[field]))


def _resolve_fields(sets: Sequence[LayeredSet], fields: Sequence[str] | None) -> tuple[str, ...]:
    if fields is None:
        each = [
            tuple(field for field in _available_fields(layered) if field in DEFAULT_FIELDS)
            for layered in sets
        ]
        _equal(sets, each, "fields; name those you want")
        return each[0]
    for layered in sets:
        there = _available_fields(layered)
        absent = [field for field in fields if field not in there]
        if absent:
            do = "Name fields that the set has, or none to take all."
            if layered.base.record.base:
                do = "It is an overlay: open the set it was made of, and name this one as overlay=."
            raise UsageError(
                f"the set has no {' and no '.join(absent)}",
                where=str(layered.base.path),
                expected="some of " + ", ".join(there),
                got=", ".join(fields),
                do=do,
            )
    return tuple(field for field in FIELDS if field in fields)


def _common_spec(sets: Sequence[LayeredSet]) -> ConditionSpec:
    texts: list[dict[str, Any]] = [layered.record_of("texts").texts for layered in sets]
    _equal(sets, [{**text, "forms": []} for text in texts], "text tokenizer")
    forms = [form for form in texts[0]["forms"] if all(form in text["forms"] for text in texts)]
    try:
        return ConditionSpec.from_json({**texts[0], "forms": forms})
    except HeaderError as error:
        raise error.as_(DamageError, shard=str(sets[0].base.path), expected="") from error


def _same_layout(sets: Sequence[LayeredSet], layouts: Sequence[Layout]) -> None:
    for part in ("dtype", "rank", "chunk", "token_order"):
        _equal(sets, [getattr(layout, part) for layout in layouts], f"weight layout: {part}")
    _equal(sets, [len(layout.modules) for layout in layouts], "weight layout: the number of modules")
    for modules in zip(*(layout.modules for layout in layouts), strict=True):
        _equal(sets, modules, "weight layout: a module")


def _equal(sets: Sequence[LayeredSet], values: Sequence[Any], what: str) -> None:
    for layered, value in zip(sets, values, strict=True):
        if value != values[0]:
            raise UsageError(
                f"the sets do not fit together: they differ in {what}",
                where=f"{sets[0].base.path} and {layered.base.path}",
                expected=f"{values[0]}"[:200],
                got=f"{value}"[:200],
            )
