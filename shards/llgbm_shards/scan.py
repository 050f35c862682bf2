"""Read one shard whole and judge every byte of it against the index, or, without one, against itself."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError
from llgbm_shards.findings import Finding
from llgbm_shards.record import ShardEntry, shard_digest
from llgbm_shards.sample import SUFFIX
from llgbm_shards.shardset import MemberExtent

#: Read size: large enough to amortise calls, small enough to be hashed while it is still in cache.
_CHUNK = 1 << 20


@dataclass(slots=True)
class ShardScan:
    """What the scan of one shard read and found."""

    findings: list[Finding] = field(default_factory=list)
    bytes_read: int = 0


def scan_shard(
    path: Path,
    entry: ShardEntry,
    samples: Sequence[Sequence[MemberExtent]] | None,
    progress: Callable[[int], None] | None = None,
) -> ShardScan:
    """Read a shard and list its damage.

    Args:
        path: The shard.
        entry: Its row in the commit record.
        samples: The members of each of its samples from a sound index; None when there is no sound index, then
            the headers are walked instead and the first damaged one ends the walk.
        progress: Called with the count of bytes read since the last call.
    """
    scan = ShardScan()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _Scanner(fd, entry, scan, progress).run(samples)
        finally:
            os.close(fd)
    except OSError as error:
        scan.findings.append(
            Finding(shard=entry.name, what=f"cannot be read: {error.strerror}", kind="unreadable")
        )
    return scan


class _Scanner:
    """The state of one scan: the open shard, one reused read buffer, and the digests seen so far."""

    def __init__(
        self, fd: int, entry: ShardEntry, scan: ShardScan, progress: Callable[[int], None] | None
    ) -> None:
        self.fd, self.entry, self.scan, self.progress = fd, entry, scan, progress
        # Anonymous mmap: page aligned, which a plain bytearray is not; unaligned reads cost three times as much.
        self.buffer = memoryview(mmap.mmap(-1, _CHUNK))
        self.lines: list[tuple[str, int, str]] = []

    def run(self, samples: Sequence[Sequence[MemberExtent]] | None) -> None:
        if samples is None:
            end = self._walk()
        else:
            for member in (member for sample in samples for member in sample):
                self._member(member)
            end = self._end_of(samples)
        if end is not None:
            self._end(end)
        actual = shard_digest(self.lines)
        if actual != self.entry.digest and not self.scan.findings:
            self._found(
                f"not the shard that was committed: expected digest {self.entry.digest}, got {actual}"
            )

    def _walk(self) -> int | None:
        """Without an index: trust the headers as far as they are canonical."""
        end = 0
        try:
            for member in ustar.members(self.fd, self.entry.name):
                self.lines.append((member.name, member.size, self._digest(member.data_offset, member.size)))
                end = member.end
        except DamageError as error:
            self._found(str(error))
            return None
        return end

    def _member(self, extent: MemberExtent) -> None:
        suffix = SUFFIX[extent.field]
        head = os.pread(self.fd, ustar.BLOCK, extent.offset - ustar.BLOCK)
        if head != ustar.header(extent.name, extent.size):
            self._found("damaged tar header", extent.key, suffix)
        digest = self._digest(extent.offset, extent.size)
        if digest != extent.blake3:
            self._found(f"damaged: expected digest {extent.blake3}, got {digest}", extent.key, suffix)
        pad = os.pread(self.fd, -extent.size % ustar.BLOCK, extent.offset + extent.size)
        if pad != ustar.padding(extent.size):
            self._found("padding after the member is not zero", extent.key, suffix)
        self.lines.append((extent.name, extent.size, digest))

    def _digest(self, offset: int, size: int) -> str:
        """BLAKE3 of a range; bytes past the end of the file are missing from it, so it cannot match."""
        digest = blake3()
        end = offset + size
        while offset < end:
            count = os.preadv(self.fd, [self.buffer[: end - offset]], offset)
            if count == 0:
                break
            digest.update(self.buffer[:count])
            offset += count
            self._read(count)
        return digest.hexdigest()

    def _end_of(self, samples: Sequence[Sequence[MemberExtent]]) -> int:
        last = samples[-1][-1]
        return last.offset + ustar.padded(last.size)

    def _end(self, offset: int) -> None:
        try:
            ustar.check_end(os.pread(self.fd, len(ustar.END) + 1, offset), self.entry.name, offset)
        except DamageError as error:
            self._found(error.what)

    def _read(self, count: int) -> None:
        self.scan.bytes_read += count
        if self.progress is not None:
            self.progress(count)

    def _found(self, what: str, key: str = "", member: str = "") -> None:
        self.scan.findings.append(Finding(shard=self.entry.name, key=key, member=member, what=what))
