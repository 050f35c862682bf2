"""Read a weights file once, into a reused page-aligned buffer, and notice when it changes meanwhile."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from llgbm_shards.errors import CheckpointError
from llgbm_shards.storage import opened_file, read_errors, read_into, read_range
from llgbm_shards.tensors import MAX_HEADER_BYTES

#: Few enough bytes to be still in a processor's second-level cache when they are digested.
_READ_AT_ONCE: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Source:
    """One weights file in memory."""

    head: bytes  # its bytes before the data section: header length and safetensors header, not yet parsed
    data: memoryview  # the data section, 4096-byte aligned; overwritten by the next read
    digest: str  # BLAKE3-256 of the whole file, hex
    size: int  # bytes of the file
    mtime_ns: int  # modification time in ns


class SourceReader:
    """Reads weights files one after another into one buffer that grows to the largest."""

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    def read(self, path: Path) -> Source:
        """Reads one file whole; refused when it changed during both of two reads."""
        for _ in range(2):
            with read_errors(CheckpointError, path.name):
                source = self._read_once(path)
            if source is not None:
                return source
        raise CheckpointError(
            "changed while it was read, twice", where=path.name, do="Pack again when nothing writes to it."
        )

    def _read_once(self, path: Path) -> Source | None:
        """The file, or None when size, mtime or inode differ before and after."""
        with opened_file(path) as fd:
            before = os.fstat(fd)
            length = int.from_bytes(read_range(fd, 0, 8), "little")
            head = read_range(fd, 0, 8 + min(length, MAX_HEADER_BYTES))
            digest = blake3(head)
            data = self._fill(fd, len(head), before.st_size - len(head), digest)
            after = path.stat()
        stable = _identity(before) == _identity(after) and data is not None
        if data is None or not stable:
            return None
        return Source(head, data, digest.hexdigest(), before.st_size, before.st_mtime_ns)

    def _fill(self, fd: int, offset: int, size: int, digest: blake3) -> memoryview | None:
        if len(self._buffer) < size:
            self._buffer = memoryview(mmap.mmap(-1, max(size, 1)))
        view = self._buffer[:size]
        for done in range(0, size, _READ_AT_ONCE):
            part = view[done : done + _READ_AT_ONCE]
            if read_into(fd, [part], offset + done):
                return None
            digest.update(part)
        return view


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
