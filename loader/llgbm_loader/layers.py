"""A set and its overlay: which of the two each member is read from, and the index of both, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from llgbm_shards.errors import UsageError
from llgbm_shards.index import index_schema
from llgbm_shards.record import CommitRecord
from llgbm_shards.shardset import ShardSet

#: What the names of an overlay's own columns begin with, beside those of the base.
OVERLAID: Final = "overlay:"
#: Columns that tell of deltas: where the overlay has deltas, its own.
_OF_DELTAS: Final = ("has_delta", "delta_norm")


@dataclass(frozen=True, slots=True)
class LayeredSet:
    """A set, and the overlay whose members stand in place of the set's own, if there is one."""

    base: ShardSet
    overlay: ShardSet | None = None

    @property
    def layers(self) -> Iterator[tuple[str, ShardSet]]:
        """(what its columns in :meth:`index` begin with, the set) of the base, then of the overlay."""
        yield "", self.base
        if self.overlay is not None:
            yield OVERLAID, self.overlay

    def record_of(self, member: str) -> CommitRecord:
        """The record of the one that has a member, of the base where neither has."""
        over = self.overlay
        return over.record if over is not None and member in over.record.members else self.base.record

    def gives(self, member: str) -> bool:
        """Whether there is this member."""
        return member in self.record_of(member).members

    def own(self, layer: ShardSet, members: Sequence[str]) -> list[str]:
        """Those of the members that are read from a layer."""
        return [member for member in members if self.record_of(member) is layer.record]

    @property
    def names(self) -> dict[str, str]:
        """Columns to query -> what each is called in :meth:`index`: of a member that the overlay has anew, its own."""
        names = {name: name for name in index_schema(self.base.record.members).names}
        if self.overlay is not None:
            members = self.overlay.record.members
            anew = {*members} - {"json"}
            names |= {
                name: OVERLAID + name
                for name in index_schema(members).names
                if name.partition(".")[0] in anew
            }
        return names

    def index(self, columns: Sequence[str], places: Sequence[str]) -> pa.Table:
        """The index: columns of the base, and of both what ``places`` tells of the members in each.

        Args:
            columns: Columns to query, some of :attr:`names`.
            places: Members to read.

        Raises:
            DamageError: An index is not what was written.
            UsageError: The overlay has other samples than the set.
        """
        names = self.names
        anew = [name for name in columns if names[name] != name]
        plain = [name for name in columns if names[name] == name]
        table = self.base.index(_with_places(self.base, plain, self.own(self.base, places)))
        if self.overlay is None:
            return table
        of_deltas = [
            name for name in _OF_DELTAS if name in columns and self.record_of("delta") is self.overlay.record
        ]
        asked = [*of_deltas, *anew]
        own = self.overlay.index(_with_places(self.overlay, asked, self.own(self.overlay, places)))
        if not own.column("key").equals(table.column("key")):
            raise _other_samples(self.base, self.overlay)
        for name in own.column_names:
            if name in of_deltas:
                table = table.set_column(table.column_names.index(name), table.field(name), own.column(name))
            elif name != "key":
                table = table.append_column(OVERLAID + name, own.column(name))
        return table


def _with_places(layer: ShardSet, columns: Sequence[str], members: Sequence[str]) -> list[str]:
    """Columns of an index, with all that tells where members stand; in the index's order."""
    fields = layer.record.members
    named = [
        "key",
        "shard",
        "offset",
        *(f"{field}.size" for field in fields),
        *(f"{field}.xxh3_64" for field in members),
    ]
    return list(dict.fromkeys([*named, *columns]))


def open_overlays(sets: Sequence[ShardSet], paths: Sequence[Path | None]) -> list[LayeredSet]:
    """Each set with its overlay; no paths: none has one.

    Raises:
        UsageError: One is no overlay, or that of another set.
        DamageError: One is unfinished or damaged.
        StorageError: One cannot be read.
    """
    pairs = zip(sets, paths or [None] * len(sets), strict=True)
    return [LayeredSet(base, None if path is None else _overlay_of(base, path)) for base, path in pairs]


def _overlay_of(base: ShardSet, path: Path) -> ShardSet:
    overlay = ShardSet(path)
    wrong: dict[str, Any] = {}
    if not overlay.record.base:
        wrong = {
            "what": "not an overlay",
            "got": "a plain set",
            "do": "Name what `llgbm-pack overlay` wrote.",
        }
    elif overlay.record.base != base.digest:
        do = "Make one of this set with `llgbm-pack overlay`, or open the set it was made of."
        wrong = {"what": "an overlay of another set", "got": f"digest {base.digest} of {base.path}", "do": do}
        wrong["expected"] = f"its base, digest {overlay.record.base}"
    if wrong:
        raise UsageError(**wrong, where=str(path))
    return overlay


def _other_samples(base: ShardSet, overlay: ShardSet) -> UsageError:
    return UsageError(
        "the overlay has other samples than its base",
        where=str(overlay.path),
        expected=f"the {len(base)} keys of {base.path}, in their order",
        got=f"{len(overlay)} keys",
        do="Make it anew with `llgbm-pack overlay`.",
    )
