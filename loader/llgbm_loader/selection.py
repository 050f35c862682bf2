"""Selection: the samples of one or more sets under one numbering, with what reading them takes.

Columns of the index become numpy arrays; no Python object is made for a sample, so a million samples cost some 100 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llgbm_loader.filters import filter_columns, filter_rows, filter_text
from llgbm_loader.layers import LayeredSet
from llgbm_loader.options import SelectOptions, needed_members
from llgbm_loader.places import Places, as_numpy, find_places, join_places
from llgbm_loader.sets import Common, find_common, open_sets
from llgbm_shards.errors import UsageError
from llgbm_shards.held import HeldShard
from llgbm_shards.index import index_schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The chosen samples of all sets, numbered 0, 1, ... to S-1 in set order, then sample-number order."""

    digests: tuple[str, ...]  # of the sets, in their order
    overlays: tuple[str, ...]  # digests of their overlays, "" of a set without one
    split: str | None  # that they were restricted to
    filters: str  # as one text
    common: Common
    shards: tuple[HeldShard, ...]  # all of sets and overlays, as these were when they were opened
    shard: NDArray[
        np.int64
    ]  # (S,) number in shards of the one that holds it in its set, whatever an overlay has
    places: dict[str, Places]  # by field of the members to read: where they stand
    has_delta: NDArray[np.bool_]  # (S,)
    keys: pa.Array  # (S,)
    columns: dict[str, pa.ChunkedArray]  # by name of an index column that goes into batches: (S,) texts

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, number: int) -> str:
        """Key of a sample."""
        return str(self.keys[number].as_py())

    def texts(self, number: int) -> dict[str, str]:
        """What the columns say of a sample."""
        return {name: str(column[number].as_py()) for name, column in self.columns.items()}

    @property
    def members(self) -> tuple[str, ...]:
        """Members that are read, in tar order."""
        return tuple(self.places)


def select(options: SelectOptions, fields: Sequence[str] | None) -> Selection:
    """Open the sets and choose samples.

    Raises:
        UsageError: The sets do not fit together, a field or column is absent, or nothing is left.
        DamageError: A set is unfinished or damaged.
        StorageError: A set cannot be read.
    """
    _check_columns(options.columns)
    sets = open_sets(options)
    opened = [one.base for one in sets]
    common = find_common(sets, fields)
    members = needed_members(common.fields)
    parts = [_choose(one, options, members) for one in sets]
    if not sum(part.num_rows for part in parts):
        splits = sorted({shard.split for shard_set in opened for shard in shard_set.record.shards})
        raise UsageError(
            "no sample is chosen",
            where=", ".join(map(str, options.paths)),
            got=f"split={options.split!r} filters={options.filters!r}",
            do=f"Splits there are: {', '.join(splits)}.",
        )
    # Overlays after all sets: the order of shards under shuffle="shards" is of their numbers, whatever lies over a set.
    layers = [*opened, *(one.overlay for one in sets if one.overlay)]
    starts = accumulate((len(layer.shards) for layer in layers), initial=0)
    firsts = {layer.digest: first for layer, first in zip(layers, starts, strict=False)}
    numbered = [_places(one, part, members, firsts) for one, part in zip(sets, parts, strict=True)]
    return Selection(
        digests=tuple(shard_set.digest for shard_set in opened),
        overlays=tuple(one.overlay.digest if one.overlay else "" for one in sets),
        split=options.split,
        filters=filter_text(options.filters),
        common=common,
        shards=tuple(shard for layer in layers for shard in layer.shards.values()),
        has_delta=np.concatenate([as_numpy(part, "has_delta") for part in parts]),
        keys=pa.concat_arrays(_chunks(parts, "key")),
        columns={name: pa.chunked_array(_chunks(parts, name), pa.string()) for name in options.columns},
        **_concatenate(numbered, members),
    )


def _check_columns(columns: Sequence[str]) -> None:
    """Refuse what is no column of texts in the index of any set."""
    kinds = {field.name: field.type for field in index_schema(())}
    texts = [name for name, kind in kinds.items() if kind == pa.string()]
    for name in columns:
        if name not in texts:
            raise UsageError(
                "not a text column of the index",
                where="option columns",
                expected=", ".join(texts),
                got=f"{name!r:.200}" + (f" of {kinds[name]}" if name in kinds else ""),
            )


def _chunks(parts: Sequence[pa.Table], name: str) -> list[pa.Array]:
    return [chunk for part in parts for chunk in part.column(name).chunks]


def _choose(layered: LayeredSet, options: SelectOptions, members: Sequence[str]) -> pa.Table:
    """The chosen rows of a set's index, with the columns that reading takes; of its overlay too."""
    shard_set = layered.base
    names = layered.names
    asked = [] if options.filters is None else filter_columns(options.filters)
    columns = {"split", "has_delta", *asked, *options.columns}
    table = layered.index([name for name in names if name in columns], members)
    if options.filters:
        table = filter_rows(table, options.filters, names)
    # Most sets have one split only: then there is nothing to compare a million times.
    if options.split is not None and {shard.split for shard in shard_set.record.shards} != {options.split}:
        table = filter_rows(table, [("split", "==", options.split)], names)
    return table


def _places(
    layered: LayeredSet, table: pa.Table, members: Sequence[str], firsts: Mapping[str, int]
) -> tuple[NDArray[np.int64], dict[str, Places]]:
    """The shard in the set of each row, and where the members are read; ``firsts``: number of each set's first shard."""
    numbers, places = [], dict[str, Places]()
    for prefix, layer in layered.layers:
        own = layered.own(layer, members)
        shard, found = find_places(layer, table, own, firsts[layer.digest], prefix)
        numbers.append(shard)
        places |= found
    return numbers[0], places


def _concatenate(
    parts: Sequence[tuple[NDArray[np.int64], dict[str, Places]]], members: Sequence[str]
) -> dict[str, Any]:
    return {
        "shard": np.concatenate([shard for shard, _ in parts]),
        "places": {field: join_places([places[field] for _, places in parts]) for field in members},
    }
