"""The canonical tar profile, and the strict reader that accepts nothing else.

Plain USTAR: regular files only, mtime 0, uid and gid 0, mode 0644, names under 100 bytes, zero padding to 512
bytes, two zero blocks, end of file. A member's header is a function of its name and size, so the reader
rebuilds each header it meets and compares: no bit of it can change unseen. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.storage import read_range

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
MAX_MEMBER_BYTES: Final = 8**11 - 1
_ZEROS: Final = memoryview(bytes(BLOCK))


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a shard: its name, size, and where its header stands."""

    name: str
    size: int
    header_offset: int

    @property
    def data_offset(self) -> int:
        """Where the member's bytes start."""
        return self.header_offset + BLOCK

    @property
    def end(self) -> int:
        """Where the next header starts."""
        return self.data_offset + padded(self.size)


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def padding(size: int) -> memoryview:
    """The zeros that follow ``size`` bytes of data."""
    return _ZEROS[: -size % BLOCK]


def header(name: str, size: int) -> bytes:
    """The 512-byte header of a member.

    Raises:
        UsageError: The name is empty, not printable ASCII or too long; or the size is 8 GiB and more.
    """
    raw = name.encode("ascii", "replace")
    if not 0 < len(raw) < 100 or not name.isascii() or not name.isprintable():
        expected = "1 to 99 printable ASCII bytes"
        raise UsageError("member name does not fit", where=f"{name!r:.120}", expected=expected)
    if size > MAX_MEMBER_BYTES:
        got = f"{size} bytes"
        raise UsageError("member too large for a tar", where=name, expected="under 8 GiB", got=got)
    head = bytearray(BLOCK)
    head[: len(raw)] = raw
    head[100:108] = b"0000644\0"
    head[108:124] = b"0000000\0" * 2
    head[124:136] = b"%011o\0" % size
    head[136:148] = b"00000000000\0"
    head[148:156] = b" " * 8
    head[156:157] = b"0"
    head[257:265] = b"ustar\00000"
    head[329:345] = b"0000000\0" * 2
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def parse(block: bytes, offset: int, shard: str) -> Member:
    """The member that a header block announces.

    Raises:
        DamageError: The block is not, to the bit, a header that this project writes.
    """
    if len(block) < BLOCK:
        raise DamageError("truncated", shard=shard, expected=f"a header at byte {offset}", got="end of file")
    name = block[:100].split(b"\0", 1)[0]
    digits = block[124:135]
    if name and name.isascii() and digits.isdigit() and not digits.translate(None, b"01234567"):
        member = Member(name.decode(), int(digits, 8), offset)
        if member.name.isprintable() and len(name) < 100 and header(member.name, member.size) == block:
            return member
    expected, got = "a canonical USTAR header", f"other bytes at offset {offset}"
    raise DamageError("damaged tar header", shard=shard, expected=expected, got=got)


def members(fd: int, shard: str) -> Iterator[Member]:
    """Walk an open shard's headers, paddings and end; the data between is skipped, not read.

    Raises:
        DamageError: Anything but the canonical profile.
    """
    size = os.fstat(fd).st_size
    offset = 0
    while True:
        block = read_range(fd, offset, BLOCK)
        if block == _ZEROS:
            break
        member = parse(block, offset, shard)
        if member.end + len(END) > size:
            expected = f"at least {member.end + len(END)} bytes"
            raise DamageError("truncated", shard=shard, expected=expected, got=f"{size}")
        data_end = member.data_offset + member.size
        if read_range(fd, data_end, -member.size % BLOCK) != padding(member.size):
            raise DamageError("padding is not zero", shard=shard, got=f"other bytes after offset {data_end}")
        yield member
        offset = member.end
    check_end(read_range(fd, offset, len(END) + 1), shard, offset)


def check_end(tail: bytes, shard: str, offset: int) -> None:
    """Two zero blocks and then the end of the file, nothing else."""
    if tail != END:
        got = "more bytes after it" if tail.startswith(END) else "other or fewer bytes"
        expected = f"two zero blocks at {offset}, then the end"
        raise DamageError("wrong end of archive", shard=shard, expected=expected, got=got)
