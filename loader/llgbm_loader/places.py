"""Where the members of samples stand, as arrays: shard, offset, size and hash of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError
from llgbm_shards.members import fixed_sizes
from llgbm_shards.names import INDEX_NAME
from llgbm_shards.shardset import ShardSet


@dataclass(frozen=True, slots=True)
class Places:
    """Where one member of S samples stands, (S,) each."""

    shard: NDArray[np.int64]  # number in the selection's shards
    offset: NDArray[np.int64]  # where its tar header starts in the shard
    size: NDArray[np.int64]  # bytes of its data
    xxh3_64: NDArray[np.uint64]  # of its data


def find_places(
    shard_set: ShardSet, table: pa.Table, members: Sequence[str], first: int, prefix: str
) -> tuple[NDArray[np.int64], dict[str, Places]]:
    """The shard of each row of an index, and the places of these members of a set by field.

    Args:
        shard_set: The set.
        table: Rows with its columns, whose names begin with ``prefix``.
        members: Those that are read.
        first: Number of its first shard.
        prefix: See ``table``.

    Raises:
        DamageError: The index does not fit the commit record.
    """
    numbers = {shard.name: first + at for at, shard in enumerate(shard_set.record.shards)}
    coded = table.column(f"{prefix}shard").combine_chunks().dictionary_encode()
    unknown = [name for name in coded.dictionary.to_pylist() if name not in numbers]
    if unknown:
        raise DamageError("names a shard that the commit record does not", shard=INDEX_NAME, got=unknown[0])
    lookup = np.array([numbers[name] for name in coded.dictionary.to_pylist()], np.int64)
    sizes = {field: as_numpy(table, f"{prefix}{field}.size") for field in shard_set.record.members}
    offsets, end = _offsets(as_numpy(table, f"{prefix}offset"), sizes)
    shard = lookup[coded.indices.to_numpy()] if len(table) else np.zeros(0, np.int64)
    _check(shard_set, table, sizes, end, shard - first)
    return shard, {
        field: Places(shard, offsets[field], sizes[field], as_numpy(table, f"{prefix}{field}.xxh3_64"))
        for field in members
    }


def join_places(parts: Sequence[Places]) -> Places:
    """The places of several selections, one after the other."""
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in Places.__slots__]
    return Places(*columns)


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


def as_numpy(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array."""
    column: NDArray[Any] = table.column(name).to_numpy()
    return column
