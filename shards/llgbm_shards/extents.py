"""Where the members of a sample stand, from its row of the index; no further than the shard that it names goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError
from llgbm_shards.members import KEY, SUFFIX
from llgbm_shards.names import INDEX_NAME
from llgbm_shards.record import ShardEntry

#: What the index tells of each member.
PARTS: Final = ("size", "blake3", "xxh3_64")


@dataclass(frozen=True, slots=True)
class MemberExtent:
    """Where one member's bytes stand and what they must hash to."""

    shard: str
    key: str
    field: str
    offset: int
    size: int
    blake3: str
    xxh3_64: int

    @property
    def name(self) -> str:
        """The member's name in the tar."""
        return f"{self.key}.{SUFFIX[self.field]}"

    @property
    def end(self) -> int:
        """Where the next member's header starts, or the end of the archive."""
        return self.offset + ustar.padded(self.size)


def row_extents(row: dict[str, Any], fields: Sequence[str]) -> list[MemberExtent]:
    """Extents of the members of one index row, in tar order."""
    extents = []
    offset = row["offset"] + ustar.BLOCK
    for field in fields:
        size, digest, xxh3 = (row[f"{field}.{part}"] for part in PARTS)
        extents.append(MemberExtent(row["shard"], row["key"], field, offset, size, digest.hex(), xxh3))
        offset = extents[-1].end + ustar.BLOCK
    return extents


def checked_extents(
    row: dict[str, Any], fields: Sequence[str], shard: ShardEntry | None
) -> list[MemberExtent]:
    """The same of a row that may say anything: a shard's name becomes a path that is opened.

    Raises:
        DamageError: The row is not of this shard, or leads out of it.
    """
    if shard is None or row["shard"] != shard.name or not KEY.fullmatch(row["key"]) or row["offset"] < 0:
        raise _unfit(row)
    extents = row_extents(row, fields)
    sound = all(0 <= extent.size <= ustar.MAX_MEMBER_BYTES for extent in extents)
    if not sound or extents[-1].end + len(ustar.END) > shard.size:
        raise _unfit(row)
    return extents


def shard_extents(
    rows: Iterable[dict[str, Any]], fields: Sequence[str], shard: ShardEntry
) -> Iterator[list[MemberExtent]]:
    """Extents of the members of all rows of one shard, which follow each other and fill it.

    Raises:
        DamageError: They do not.
    """
    end = 0
    for row in rows:
        extents = checked_extents(row, fields, shard)
        if row["offset"] != end:
            raise _unfit(row)
        end = extents[-1].end
        yield extents
    if end + len(ustar.END) != shard.size:
        got = f"{end + len(ustar.END)}"
        what = f"the rows of {shard.name} do not fill it"
        raise DamageError(what, shard=INDEX_NAME, expected=f"{shard.size} bytes", got=got)


def _unfit(row: dict[str, Any]) -> DamageError:
    return DamageError("a row that does not fit its shard", shard=INDEX_NAME, key=row["key"])
