"""Selection: the samples of one or more sets under one numbering, with what reading them takes.

Columns of the index become numpy arrays; no Python object is made for a sample, so a million samples cost some 100 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llgbm_loader.filters import filter_columns, filter_rows, filter_text
from llgbm_loader.options import SelectOptions, needed_members
from llgbm_loader.sets import Common, find_common, open_sets
from llgbm_shards import ustar
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.held import HeldShard
from llgbm_shards.index import index_schema
from llgbm_shards.members import fixed_sizes
from llgbm_shards.names import INDEX_NAME
from llgbm_shards.shardset import ShardSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The chosen samples of all sets, numbered 0, 1, ... to S-1 in set order, then sample-number order."""

    digests: tuple[str, ...]  # of the sets, in their order
    split: str | None  # that they were restricted to
    filters: str  # as one text
    common: Common
    shards: tuple[HeldShard, ...]  # all of the sets, as these were when they were opened
    shard: NDArray[np.int64]  # (S,) number in shards
    # By field of the members to read, (S,) each: bytes, where the tar header starts in the shard, XXH3-64.
    sizes: dict[str, NDArray[np.int64]]
    offsets: dict[str, NDArray[np.int64]]
    hashes: dict[str, NDArray[np.uint64]]
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
        return tuple(self.sizes)


def select(options: SelectOptions, fields: Sequence[str] | None) -> Selection:
    """Open the sets and choose samples.

    Raises:
        UsageError: The sets do not fit together, a field or column is absent, or nothing is left.
        DamageError: A set is unfinished or damaged.
        StorageError: A set cannot be read.
    """
    _check_columns(options.columns)
    sets = open_sets(options)
    common = find_common(sets, fields)
    members = needed_members(common.fields)
    parts = [_choose(shard_set, options, members) for shard_set in sets]
    if not sum(part.num_rows for part in parts):
        splits = sorted({shard.split for shard_set in sets for shard in shard_set.record.shards})
        raise UsageError(
            "no sample is chosen",
            where=", ".join(map(str, options.paths)),
            got=f"split={options.split!r} filters={options.filters!r}",
            do=f"Splits there are: {', '.join(splits)}.",
        )
    numbered, first = [], 0
    for shard_set, part in zip(sets, parts, strict=True):
        numbered.append(_columns(shard_set, part, members, first))
        first += len(shard_set.record.shards)
    return Selection(
        digests=tuple(shard_set.digest for shard_set in sets),
        split=options.split,
        filters=filter_text(options.filters),
        common=common,
        shards=tuple(shard for shard_set in sets for shard in shard_set.shards.values()),
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


def _choose(shard_set: ShardSet, options: SelectOptions, members: Sequence[str]) -> pa.Table:
    """The chosen rows of a set's index, with the columns that reading takes."""
    fields = shard_set.record.members
    wanted = ["key", "split", "shard", "offset", "has_delta", *(f"{field}.size" for field in fields)]
    wanted += [f"{field}.xxh3_64" for field in members]
    names = index_schema(fields).names
    asked = [] if options.filters is None else filter_columns(options.filters)
    table = shard_set.index([name for name in names if name in {*wanted, *asked, *options.columns}])
    if options.filters:
        table = filter_rows(table, options.filters)
    # Most sets have one split only: then there is nothing to compare a million times.
    if options.split is not None and {shard.split for shard in shard_set.record.shards} != {options.split}:
        table = filter_rows(table, [("split", "==", options.split)])
    return table.select(list(dict.fromkeys([*wanted, *options.columns])))


def _columns(shard_set: ShardSet, table: pa.Table, members: Sequence[str], first: int) -> dict[str, Any]:
    """Columns of one set as arrays; its shards are numbered from ``first``."""
    numbers = {shard.name: first + at for at, shard in enumerate(shard_set.record.shards)}
    coded = table.column("shard").combine_chunks().dictionary_encode()
    unknown = [name for name in coded.dictionary.to_pylist() if name not in numbers]
    if unknown:
        raise DamageError("names a shard that the commit record does not", shard=INDEX_NAME, got=unknown[0])
    lookup = np.array([numbers[name] for name in coded.dictionary.to_pylist()], np.int64)
    sizes = {field: _numpy(table, f"{field}.size") for field in shard_set.record.members}
    offsets, end = _offsets(_numpy(table, "offset"), sizes)
    shard = lookup[coded.indices.to_numpy()] if len(table) else np.zeros(0, np.int64)
    _check(shard_set, table, sizes, end, shard - first)
    return {
        "shard": shard,
        "has_delta": _numpy(table, "has_delta"),
        "sizes": {field: sizes[field] for field in members},
        "offsets": {field: offsets[field] for field in members},
        "hashes": {field: _numpy(table, f"{field}.xxh3_64") for field in members},
    }


def _offsets(
    start: NDArray[np.int64], sizes: dict[str, NDArray[np.int64]]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Where each member's header stands, and where the sample ends."""
    offsets = {}
    for field, size in sizes.items():
        offsets[field] = start
        start = start + ustar.BLOCK + (size + ustar.BLOCK - 1) // ustar.BLOCK * ustar.BLOCK
    return offsets, start


def _check(
    shard_set: ShardSet,
    table: pa.Table,
    sizes: dict[str, NDArray[np.int64]],
    end: NDArray[np.int64],
    shard: NDArray[np.int64],
) -> None:
    """Refuse an index whose sizes the layout does not allow, or whose samples reach outside their shard."""
    fixed = fixed_sizes(shard_set.layout, shard_set.record.delta_width)
    bounds = np.array([entry.size for entry in shard_set.record.shards] or [0], np.int64)
    wrong = end + len(ustar.END) > bounds[shard]
    for field, size in sizes.items():
        wrong |= size != fixed[field] if field in fixed else size < 0
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DamageError(
            "sizes do not fit the commit record", shard=INDEX_NAME, key=table.column("key")[row].as_py()
        )


def _concatenate(parts: Sequence[dict[str, Any]], members: Sequence[str]) -> dict[str, Any]:
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in ("shard", "has_delta")
    }
    for name in ("sizes", "offsets", "hashes"):
        joined[name] = {field: np.concatenate([part[name][field] for part in parts]) for field in members}
    return joined


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    column: NDArray[Any] = table.column(name).to_numpy()
    return column
