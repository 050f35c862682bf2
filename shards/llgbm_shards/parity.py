"""Parity: the XOR of the samples of a shard, beside it, from which one lost sample a group comes back.

Sample i of a shard belongs to group i mod P. A sample's record is its stretch of the tar, from its first header to its
last padding. The parity file is a canonical safetensors file with one tensor ``parity``, U8 (P, longest record): row g is
the XOR of the records of group g, each filled up with zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.record import CommitRecord, FileEntry
from llgbm_shards.storage import Buffer, new_file, read_range, storage_errors, write_all
from llgbm_shards.tensors import header_bytes

#: Few enough bytes that a block stays in a processor's cache from one step to the next, and read at once.
_BLOCK: Final = 1 << 20
#: What a row has more than the record it is made for, so that one a little longer needs no new row.
_SLACK: Final = 64 << 10
#: So many bytes are written before the disk is told to begin with them: each telling takes a while.
_WRITE_BACK: Final = 32 << 20
Bytes = NDArray[np.uint8]
Extents = Sequence[MemberExtent]


def parity_header(groups: int, longest: int) -> bytes:
    """The safetensors header of a parity file."""
    return header_bytes({"parity": ("U8", (groups, longest))})


def parity_groups(record: CommitRecord) -> int:
    """P of a set, 0 without parity."""
    groups: int = record.options.get("parity", 0)
    return groups


def stretch(sample: Extents) -> tuple[int, int]:
    """Where the record of a sample starts in its shard, and its bytes."""
    start = sample[0].offset - ustar.BLOCK
    return start, sample[-1].end - start


class ParityRows:
    """The rows of a shard's parity, made while the shard is written; their memory is used again for the next shard.

    Memory is P times the longest record.
    """

    def __init__(self, groups: int) -> None:
        self._rows: list[Bytes] = [np.empty(0, np.uint8)] * groups
        self._lengths = [
            0
        ] * groups  # Bytes of each row that are in use; what is behind them counts as zeros.
        self._samples = 0

    def begin(self) -> None:
        """Forget the last shard."""
        self._lengths = [0] * len(self._rows)
        self._samples = 0

    def add(self, parts: Sequence[Buffer]) -> None:
        """Take the next sample in, given as the buffers that are written of it."""
        group = self._samples % len(self._rows)
        self._samples += 1
        arrays = [_bytes(part) for part in parts]
        size = sum(map(len, arrays))
        row, used, start = self._grown(group, size), self._lengths[group], 0
        for array in arrays:
            both = min(max(used - start, 0), len(array))
            _xor(row[start : start + both], array[:both])
            row[start + both : start + len(array)] = array[both:]
            start += len(array)
        self._lengths[group] = max(used, size)

    def _grown(self, group: int, size: int) -> Bytes:
        row = self._rows[group]
        if size > len(row):
            self._rows[group] = np.empty(size + _SLACK, np.uint8)
            used = self._lengths[group]
            self._rows[group][:used] = row[:used]
        return self._rows[group]

    def save(self, path: Path) -> FileEntry:
        """Write the parity file durably; returns its entry in the commit record.

        Raises:
            StorageError: It cannot be written; the partial file is removed.
        """
        return write_parity(path, self._blocks(), len(self._rows) * max(self._lengths))

    def _blocks(self) -> Iterator[Buffer]:
        longest = max(self._lengths)
        yield parity_header(len(self._rows), longest)
        for row, used in zip(self._rows, self._lengths, strict=True):
            for start in range(0, used, _BLOCK):
                yield row[start : min(start + _BLOCK, used)].data
            for start in range(used, longest, _BLOCK):
                yield bytes(min(_BLOCK, longest - start))


def write_parity(
    path: Path, blocks: Iterator[Buffer], expected_bytes: int, expected: FileEntry | None = None
) -> FileEntry:
    """Write a parity file durably, given block by block; with ``expected`` only one that is just this.

    Raises:
        DamageError: It is another one; nothing was changed.
        StorageError: It cannot be written; the partial file is removed.
    """
    digest, size, begun = blake3(), 0, 0
    with storage_errors(path, needed=expected_bytes), new_file(path) as fd:
        for block in blocks:
            digest.update(block)
            size += write_all(fd, [block])
            if size - begun >= _WRITE_BACK:  # As for shards: begin to write back.
                os.posix_fadvise(fd, begun, size - begun, os.POSIX_FADV_DONTNEED)
                begun = size
        entry = FileEntry(name=path.name, size=size, digest=digest.hexdigest())
        if expected not in (None, entry):
            raise DamageError(
                "not the parity that was committed", shard=path.name, got=f"digest {entry.digest}"
            )
    return entry


def parity_blocks(fd: int, samples: Sequence[Extents], groups: int) -> Iterator[Buffer]:
    """The bytes of a shard's parity file, made from the open shard in small memory; each byte is read once."""
    records = [stretch(sample) for sample in samples]
    longest = max(size for _, size in records)
    yield parity_header(groups, longest)
    for group in range(groups):
        for offset in range(0, longest, _BLOCK):
            block = np.zeros(min(_BLOCK, longest - offset), np.uint8)
            _add_records(block, fd, records[group::groups], offset)
            yield block.data


def recovered_record(
    shard: int | None, parity: int, samples: Sequence[Extents], groups: int, number: int
) -> bytes | None:
    """The record of one sample as parity and the others of its group give it.

    Args:
        shard: The open shard; None when there is none.
        parity: The open parity file; it may be damaged as well.
        samples: The samples of the shard.
        groups: P.
        number: The sample in question, by its place in the shard.

    Returns:
        The bytes, proven by the digests of the sample's members; None when they are not that sample.
    """
    records = [stretch(sample) for sample in samples]
    longest, size = max(size for _, size in records), records[number][1]
    start = len(parity_header(groups, longest)) + number % groups * longest
    row = np.frombuffer(bytearray(read_range(parity, start, size)), np.uint8)
    if len(row) < size:
        return None
    others = [records[i] for i in range(number % groups, len(records), groups) if i != number]
    if shard is not None:
        for offset in range(0, size, _BLOCK):
            _add_records(row[offset : offset + _BLOCK], shard, others, offset)
    record = row.tobytes()
    return record if is_whole(record, samples[number]) else None


def is_whole(record: Buffer, sample: Extents) -> bool:
    """Whether the bytes are the record of a sample: headers, digests of the members, paddings."""
    view = memoryview(record)
    start, size = stretch(sample)
    return len(view) == size and all(_is_member(view, extent.offset - start, extent) for extent in sample)


def _is_member(view: memoryview, offset: int, extent: MemberExtent) -> bool:
    end = offset + extent.size
    return (
        view[offset - ustar.BLOCK : offset] == ustar.header(extent.name, extent.size)
        and blake3(view[offset:end]).hexdigest() == extent.blake3
        and view[end : offset + ustar.padded(extent.size)] == ustar.padding(extent.size)
    )


def _add_records(block: Bytes, fd: int, records: Sequence[tuple[int, int]], offset: int) -> None:
    """XOR into a block the bytes that records have from an offset on."""
    for start, size in records:
        if (wanted := min(len(block), size - offset)) > 0:
            part = _bytes(read_range(fd, start + offset, wanted))
            _xor(block[: len(part)], part)


def _xor(target: Bytes, source: Bytes) -> None:
    np.bitwise_xor(target, source, out=target)


def _bytes(part: Any) -> Bytes:
    return np.frombuffer(part, np.uint8)
