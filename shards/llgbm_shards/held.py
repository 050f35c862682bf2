"""The shards of an open set: each stays the file that it was when the set was opened, or one with the same bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from llgbm_shards import ustar
from llgbm_shards.directory import Directory, replaced
from llgbm_shards.errors import MEND, DamageError
from llgbm_shards.record import ShardEntry, shard_digest
from llgbm_shards.storage import IrregularError, open_file, read_range

_CHUNK: Final = 1 << 20
_log = logging.getLogger("llgbm_shards")


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


def identities(directory: Directory) -> dict[str, Identity]:
    """Those of a directory's shards, by name; without those that there is no telling of.

    They are taken before the commit record is read: a shard that takes another's place later has to prove itself.
    """
    try:
        with os.scandir(directory.fd) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".tar")]
    except OSError:
        return {}
    pairs = ((name, identity_in(directory, name)) for name in names)
    return {name: identity for name, identity in pairs if identity}


def identity_in(directory: Directory, name: str) -> Identity | None:
    """That of a file in a directory; None when there is no telling."""
    try:
        return Identity.of(os.stat(name, dir_fd=directory.fd))
    except OSError:
        return None


class HeldShard:
    """One shard of an open set. Picklable; threads may share it.

    ``identity`` is that of the file which was there when the set was opened. None when there is no telling: then
    whatever is opened later has to prove itself.
    """

    __slots__ = ("_directory", "_known", "_refused", "entry")

    def __init__(self, directory: Directory, entry: ShardEntry, identity: Identity | None) -> None:
        self.entry = entry
        self._directory = directory
        # All of them: readers hold the old file open while others open the one that was put in its place.
        self._known = {identity} if identity else set[Identity]()
        self._refused: tuple[Identity, str] | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.entry.name

    @property
    def set_path(self) -> Path:
        """The directory of its set, for messages: shards of several sets have the same names."""
        return self._directory.path

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

    def prove(self, fd: int, *, trusted: bool = False) -> bool:
        """Make sure that an open file is the one that was there when the set was opened, or equal to it.

        Args:
            fd: Its descriptor.
            trusted: No digest proves what is read of it: then it must have the size that was committed, too.

        Returns:
            Whether it was read whole for that.

        Raises:
            DamageError: It is neither.
            OSError: It cannot be read.
        """
        identity = Identity.of(os.fstat(fd))
        if identity in self._known:
            if trusted and identity.size != self.entry.size:
                what = f"the shard is {'truncated' if identity.size < self.entry.size else 'too long'}"
                expected, got = f"{self.entry.size} bytes", f"{identity.size}"
                raise DamageError(what, shard=self.name, expected=expected, got=got, do=MEND)
            return False
        # Without a lock, which a fork could copy in its locked state: at worst two threads read the same shard.
        refused = self._refused
        difference = refused[1] if refused and refused[0] == identity else self._difference(fd, identity)
        if difference:
            self._refused = (identity, difference)
            expected = f"{self.entry.size} bytes, digest {self.entry.digest}"
            raise replaced(self.name, expected, difference)
        self._known.add(identity)
        return True

    def _difference(self, fd: int, identity: Identity) -> str:
        """How the bytes differ from those that were committed; "" when they do not."""
        if identity.size != self.entry.size:
            return f"{identity.size} bytes"
        _log.warning(
            "%s is not the file that it was, or its mode, links or times changed: it is read whole", self.name
        )
        try:
            digest = shard_digest(member_lines(fd, self.name))
        except DamageError as error:
            return f"another file: {error.what}"
        return "" if digest == self.entry.digest else f"digest {digest}"


def member_lines(fd: int, shard: str) -> Iterator[tuple[str, int, str]]:
    """Name, size and hex digest of each member of an open shard, as :func:`shard_digest` takes them.

    Raises:
        DamageError: It is not of the canonical tar profile.
    """
    for member in ustar.members(fd, shard):
        digest, end = blake3(), member.data_offset + member.size
        for offset in range(member.data_offset, end, _CHUNK):
            digest.update(read_range(fd, offset, min(_CHUNK, end - offset)))
        yield member.name, member.size, digest.hexdigest()
