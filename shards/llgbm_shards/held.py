"""The shards of an open set: each stays the file that it was when the set was opened, or one with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from llgbm_shards import ustar
from llgbm_shards.directory import Directory, replaced
from llgbm_shards.errors import DamageError
from llgbm_shards.record import ShardEntry, shard_digest
from llgbm_shards.storage import IrregularError, open_file, read_range

_CHUNK: Final = 1 << 20


class Identity(NamedTuple):
    """What tells a file from every other.

    An inode number alone is given away anew when a file is deleted, and whoever copies a file may set its mtime;
    its ctime nobody can set. The device is left out: each host of a network file system numbers it otherwise.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """That of a file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class HeldShard:
    """One shard of an open set. Picklable; threads may share it.

    Args:
        directory: The set's directory.
        entry: The shard's row in the commit record.
    """

    __slots__ = ("_directory", "_identity", "_refused", "entry")

    def __init__(self, directory: Directory, entry: ShardEntry) -> None:
        self.entry = entry
        self._directory = directory
        self._identity = self._look()
        self._refused: tuple[Identity, str] | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.entry.name

    def _look(self) -> Identity | None:
        """The identity; None when there is no telling: then whatever is opened later has to prove itself."""
        try:
            return Identity.of(os.stat(self.name, dir_fd=self._directory.fd))
        except OSError:
            return None

    def open(self, *, prove: bool = True) -> int:
        """A descriptor of the shard; the caller closes it.

        Another file than the one that was there when the set was opened is read whole once: ``repair`` puts back
        files that are equal, and these are as good.

        Args:
            prove: Without, any file is opened: for a reader that proves all it reads by digests from the index.

        Raises:
            DamageError: It is missing, or no regular file, or the set was replaced.
            OSError: It cannot be opened or read.
        """
        try:
            fd = open_file(self.name, dir_fd=self._directory.fd)
        except FileNotFoundError:
            raise self._directory.missing(self.name, "the shard is missing") from None
        except IrregularError as error:
            raise DamageError("not a regular file", shard=self.name) from error
        try:
            if prove:
                self.prove(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def prove(self, fd: int) -> None:
        """Make sure that an open file is the one that was there when the set was opened, or equal to it.

        Raises:
            DamageError: It is neither.
            OSError: It cannot be read.
        """
        identity = Identity.of(os.fstat(fd))
        if identity == self._identity:
            return
        # Without a lock, which a fork could copy in its locked state: at worst two threads read the same shard.
        refused = self._refused
        got = refused[1] if refused and refused[0] == identity else self._difference(fd, identity)
        if got:
            self._refused = (identity, got)
            expected = f"{self.entry.size} bytes, digest {self.entry.digest}"
            raise replaced(self.name, expected, got)
        self._identity = identity

    def _difference(self, fd: int, identity: Identity) -> str:
        """How the bytes differ from those that were committed; "" when they do not."""
        if identity.size != self.entry.size:
            return f"{identity.size} bytes"
        try:
            digest = shard_digest(member_lines(fd, self.name))
        except DamageError as error:
            return f"another file: {error.what}"
        return "" if digest == self.entry.digest else f"digest {digest}"


def member_lines(fd: int, shard: str) -> Iterator[tuple[str, int, str]]:
    """Name, size and hex digest of each member of an open shard, as :func:`shard_digest` takes them.

    Raises:
        DamageError: It is not of the canonical tar profile.
        OSError: It cannot be read.
    """
    for member in ustar.members(fd, shard):
        digest, end = blake3(), member.data_offset + member.size
        for offset in range(member.data_offset, end, _CHUNK):
            digest.update(read_range(fd, offset, min(_CHUNK, end - offset)))
        yield member.name, member.size, digest.hexdigest()
