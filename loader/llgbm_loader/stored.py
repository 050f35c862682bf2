"""What the index says of a sample's members, and the refusal of bytes that are not theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llgbm_shards import ustar
from llgbm_shards.errors import MEND, DamageError
from llgbm_shards.members import SUFFIX


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMember:
    """One member of one sample, as the index has it."""

    field: str
    key: str  # the sample's
    shard: int  # number of its shard in the selection
    shard_name: str
    set_path: Path  # of the set or overlay that the shard is of
    offset: int  # where its tar header starts in the shard
    size: int  # bytes of its data, array header included
    xxh3_64: int  # of its data
    prefix: bytes  # the array header, a function of the layout; empty for texts

    @property
    def head(self) -> bytes:
        """The tar header and the array header: functions of the index row, so a foreign shard shows."""
        return ustar.header(f"{self.key}.{SUFFIX[self.field]}", self.size) + self.prefix

    @property
    def end(self) -> int:
        """Where the next member starts in the shard."""
        return self.offset + ustar.BLOCK + ustar.padded(self.size)

    def check_head(self, head: memoryview) -> None:
        """Refuse headers that are not this member's."""
        if head != self.head:
            raise self.damage("not the member that the index names")

    def check_hash(self, digest: int) -> None:
        """Refuse data with another XXH3-64."""
        if digest != self.xxh3_64:
            what = "the bytes are not those that were written"
            raise self.damage(what, f"{self.xxh3_64:016x}", f"{digest:016x}")

    def damage(self, what: str, expected: str = "", got: str = "") -> DamageError:
        """An error that names shard, key and member."""
        return DamageError(
            what,
            shard=self.shard_name,
            key=self.key,
            member=SUFFIX[self.field],
            expected=expected,
            got=got,
            do=f"It is of {self.set_path}. {MEND}",
        )


def side_by_side(members: Iterable[StoredMember]) -> Iterator[list[StoredMember]]:
    """Group members of a sample, which come in tar order, where they stand next to each other in the tar."""
    run: list[StoredMember] = []
    for member in members:
        if run and (member.shard, member.offset) != (run[-1].shard, run[-1].end):
            yield run
            run = []
        run.append(member)
    if run:
        yield run
