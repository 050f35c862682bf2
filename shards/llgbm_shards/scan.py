"""Read one shard and judge its bytes against the index: each member alone, so that damage hides no other damage."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.findings import Finding, Kind
from llgbm_shards.held import HeldShard
from llgbm_shards.members import SUFFIX
from llgbm_shards.presence import RETRY_S, finding_of, unreadable
from llgbm_shards.record import ShardEntry, shard_digest
from llgbm_shards.recover import recover_samples
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.storage import read_into, read_range

#: Read size: large enough to amortise calls, small enough to be hashed while it is still in cache.
_CHUNK: Final = 1 << 20

Samples = Sequence[Sequence[MemberExtent]]
#: Looks at the values of one sample whose bytes are right: its extents and its members' bytes by field.
Inspect = Callable[[Sequence[MemberExtent], Mapping[str, bytes]], Iterable[Finding]]


@dataclass(slots=True)
class ShardScan:
    """What the scan of one shard read and found."""

    findings: list[Finding] = field(default_factory=list)
    bytes_read: int = 0  # of members
    samples_read: int = 0
    nothing_right: bool = False  # Not one member is what it should be: most likely this is another shard.


def scan_shard(
    shard: HeldShard,
    samples: Samples | None,
    *,
    whole: bool = True,
    inspect: Inspect | None = None,
    progress: Callable[[int], None] | None = None,
) -> ShardScan:
    """Read a shard and list its damage.

    Args:
        shard: The shard, as the set holds it.
        samples: The members of its samples from a sound index; None when there is no sound index, then what the
            shard's own json members say is taken, and proven by the shard's digest.
        whole: ``samples`` are all of the shard's, not some.
        inspect: Looks at the values of each sample without damage.
        progress: Called with the count of bytes read since the last call.
    """
    scan = ShardScan()
    try:
        fd = shard.open()
        try:
            _Scanner(fd, shard.entry, scan, inspect, progress).run(samples, whole)
        finally:
            os.close(fd)
    except DamageError as error:
        scan.findings.append(finding_of(error, shard.name))
    except OSError as error:
        scan.findings.append(unreadable(shard.name, error))
    return scan


class _Scanner:
    """The state of one scan: the open shard, one reused read buffer, and the digests seen so far."""

    def __init__(
        self,
        fd: int,
        entry: ShardEntry,
        scan: ShardScan,
        inspect: Inspect | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.fd, self.entry, self.scan, self.inspect, self.progress = fd, entry, scan, inspect, progress
        # Anonymous mmap: page aligned, which a plain bytearray is not; unaligned reads cost three times as much.
        self.buffer = memoryview(mmap.mmap(-1, min(_CHUNK, max(entry.size, 1))))
        self.lines: list[tuple[str, int, str]] = []
        self.hold = False
        self.held: bytearray | None = None

    def run(self, samples: Samples | None, whole: bool) -> None:
        if samples is None:
            recovered = recover_samples(self.fd, self.entry.name, limit=self.entry.size)
            self.scan.findings += recovered.findings
            samples = recovered.samples
        wrong = sum(self._sample(sample) for sample in samples)
        self.scan.samples_read = len(samples)
        if whole:
            self.scan.nothing_right = 0 < wrong == sum(map(len, samples))
            self._end(samples[-1][-1].end if samples else 0)
            self._digest_of_shard()
        else:
            self._end(self.entry.size - len(ustar.END))

    def _sample(self, sample: Sequence[MemberExtent]) -> int:
        """Judge the members of one sample; returns how many are damaged."""
        data: dict[str, bytes] = {}
        wrong = 0
        for extent in sample:
            too_large = extent.field == "json" and extent.size > MAX_JSON_BYTES
            self.hold = self.inspect is not None and not too_large
            if self.inspect is not None and too_large:
                what = f"too large: expected at most {MAX_JSON_BYTES} bytes, got {extent.size}"
                self._found(what, extent=extent)
            if problem := self._member(extent):
                self._found(problem[1], problem[0], extent)
                wrong += problem[0] == "damage"
            if self.held is not None:
                data[extent.field] = bytes(self.held)
        if self.inspect is not None and not wrong and len(data) == len(sample):
            self.scan.findings += self.inspect(sample, data)
        return wrong

    def _member(self, extent: MemberExtent) -> tuple[Kind, str] | None:
        """What is wrong with a member. Whatever is wrong is looked at twice: the second look counts."""
        first = self._judge(extent)
        if first is None:
            return None
        if first[0] == "unreadable":
            time.sleep(RETRY_S)
        second = self._judge(extent)
        return second or ("transient", f"right when it was read again; the first time {first[1]}")

    def _judge(self, extent: MemberExtent) -> tuple[Kind, str] | None:
        try:
            head = read_range(self.fd, extent.offset - ustar.BLOCK, ustar.BLOCK)
            digest, count = self._digest(extent.offset, extent.size)
            pad = read_range(self.fd, extent.offset + extent.size, -extent.size % ustar.BLOCK)
        except OSError as error:
            self.held = None
            return "unreadable", f"cannot be read: {error.strerror}"
        problems = list(_problems(extent, head, digest, count, pad))
        if not problems:
            self.lines.append((extent.name, extent.size, digest))
        return ("damage", "; ".join(problems)) if problems else None

    def _digest(self, offset: int, size: int) -> tuple[str, int]:
        """BLAKE3 of a range and how many of its bytes the file has; a range cut short cannot match."""
        digest = blake3()
        done = 0
        self.held = bytearray() if self.hold else None
        while done < size:
            wanted = min(size - done, len(self.buffer))
            count = wanted - read_into(self.fd, [self.buffer[:wanted]], offset + done)
            if count == 0:
                break
            digest.update(self.buffer[:count])
            if self.held is not None:
                self.held += self.buffer[:count]
            done += count
            self.scan.bytes_read += count
            if self.progress is not None:
                self.progress(count)
        return digest.hexdigest(), done

    def _digest_of_shard(self) -> None:
        # A failure that passed proves nothing: the bytes of the second look are the ones in question.
        wrong = any(finding.kind != "transient" for finding in self.scan.findings)
        if not wrong and (got := shard_digest(self.lines)) != self.entry.digest:
            self._found(f"not the shard that was committed: expected digest {self.entry.digest}, got {got}")

    def _end(self, offset: int) -> None:
        try:
            ustar.check_end(read_range(self.fd, offset, len(ustar.END) + 1), self.entry.name, offset)
        except DamageError as error:
            self._found(error.summary)

    def _found(self, what: str, kind: Kind = "damage", extent: MemberExtent | None = None) -> None:
        key, member = (extent.key, SUFFIX[extent.field]) if extent else ("", "")
        self.scan.findings.append(
            Finding(shard=self.entry.name, key=key, member=member, what=what, kind=kind)
        )


def _problems(extent: MemberExtent, head: bytes, digest: str, count: int, pad: bytes) -> Iterable[str]:
    if len(head) < ustar.BLOCK:
        yield "missing: the shard ends before it" if not head else "missing: the shard ends in its tar header"
        return
    if head != ustar.header(extent.name, extent.size):
        yield f"damaged tar header at byte {extent.offset - ustar.BLOCK}"
    if count < extent.size:
        yield f"truncated: expected {extent.size} bytes at byte {extent.offset}, got {count}"
        return
    if extent.blake3 and digest != extent.blake3:
        yield f"damaged: expected digest {extent.blake3}, got {digest}"
    if len(pad) < len(ustar.padding(extent.size)):
        yield "truncated: the shard ends in the padding after it"
    elif pad != ustar.padding(extent.size):
        yield "padding after it is not zero"
