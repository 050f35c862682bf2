"""Write one shard: canonical tar members in order, durable under the final name or absent."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llgbm_shards import ustar
from llgbm_shards.members import SUFFIX, EncodedMember
from llgbm_shards.parity import ParityRows
from llgbm_shards.record import shard_digest
from llgbm_shards.storage import Buffer, new_file, storage_errors, write_all


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A sample ready to be written."""

    key: str
    members: Sequence[EncodedMember]  # in member order; their buffers are used before the next sample is made
    columns: dict[str, Any]  # query columns of its index row: checkpoint, task, ...


@dataclass(slots=True)
class WrittenShard:
    """What was written: bytes, digest over the member lines, and the index rows (digests as hex)."""

    name: str
    size: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """As the commit record has it."""
        return shard_digest(self.lines)

    def add(self, sample: PackedSample) -> list[Buffer]:
        """Note one sample; returns the buffers to write for it."""
        row: dict[str, Any] = {"key": sample.key, "shard": self.name, "offset": self.size}
        parts: list[Buffer] = []
        for member in sample.members:
            name = f"{sample.key}.{SUFFIX[member.field]}"
            parts += [ustar.header(name, member.size), *member.parts, ustar.padding(member.size)]
            row[f"{member.field}.size"] = member.size
            row[f"{member.field}.blake3"] = member.blake3.hex()
            row[f"{member.field}.xxh3_64"] = member.xxh3_64
            self.lines.append((name, member.size, member.blake3.hex()))
            self.size += ustar.BLOCK + ustar.padded(member.size)
        self.rows.append({**row, **sample.columns})
        return parts


def write_shard(
    path: Path,
    samples: Iterable[PackedSample],
    *,
    expected_bytes: int,
    accept: Callable[[WrittenShard], None] | None = None,
    parity: ParityRows | None = None,
) -> WrittenShard | None:
    """Write samples to a shard; nothing is written when there are none.

    Args:
        path: Final name of the shard.
        samples: Made one at a time, while the shard is being written.
        expected_bytes: Size the shard may reach, for the message when the disk is full.
        accept: Called when all is written and nothing has its final name yet; what it raises refuses the shard.
        parity: Takes in each sample as it is written; the caller saves it.

    Raises:
        StorageError: I/O faults of the output, a full disk among them; the partial file is removed.
    """
    pending = iter(samples)
    first = next(pending, None)
    if first is None:
        return None
    shard = WrittenShard(path.name)
    if parity is not None:
        parity.begin()
    with storage_errors(path, needed=expected_bytes), new_file(path) as fd:
        for sample in itertools.chain([first], pending):
            start = shard.size
            parts = shard.add(sample)
            write_all(fd, parts)
            # Starts writing these pages back now, so that the disk works while the next sample is made; without it
            # the final fsync waits for all of them.
            os.posix_fadvise(fd, start, shard.size - start, os.POSIX_FADV_DONTNEED)
            if parity is not None:
                parity.add(parts)
        shard.size += write_all(fd, [ustar.END])
        if accept is not None:
            accept(shard)
    return shard
