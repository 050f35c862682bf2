"""Check the parity files of a set: are they what was written, and the XOR of their shards?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blake3 import blake3

from llgbm_shards.directory import Directory
from llgbm_shards.errors import DamageError, LlgbmError, StorageError
from llgbm_shards.findings import Finding
from llgbm_shards.names import PARITY, parity_name
from llgbm_shards.parity import parity_blocks, parity_groups
from llgbm_shards.presence import finding_of, read_twice
from llgbm_shards.record import CommitRecord, FileEntry, listed_file, refuse_other_digest
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import read_range

_CHUNK: Final = 1 << 20


def parity_entries(record: CommitRecord) -> list[FileEntry]:
    """The parity files that a record lists."""
    return [entry for entry in record.files if PARITY.fullmatch(entry.name)]


def check_parity_file(
    directory: Directory, entry: FileEntry, progress: Callable[[int], None] | None
) -> list[Finding]:
    """Whether a parity file is what was written, read in chunks: it may be larger than memory."""
    findings: list[Finding] = []

    def prove() -> None:
        digest = blake3()
        with listed_file(directory, entry) as fd:
            for offset in range(0, entry.size, _CHUNK):
                digest.update(chunk := read_range(fd, offset, min(_CHUNK, entry.size - offset)))
                if progress is not None:
                    progress(len(chunk))
        refuse_other_digest(entry, digest.hexdigest())

    try:
        read_twice(prove, entry.name, findings)
    except LlgbmError as error:
        findings.append(finding_of(error, entry.name))
    return findings


def check_xor(shard_set: ShardSet, shard: str) -> list[Finding]:
    """Whether the parity of a sound shard is its XOR; only a writer that is wrong makes another."""
    entry = shard_set.record.file(parity_name(shard))
    digest = blake3()
    try:
        samples = list(shard_set.shard_extents(shard))
        with shard_set.open_shard(shard) as fd:
            for block in parity_blocks(fd, samples, parity_groups(shard_set.record)):
                digest.update(block)
    except (DamageError, StorageError) as error:
        return [finding_of(error, shard)]
    got = digest.hexdigest()
    what = f"not the XOR of {shard}: expected digest {got}, got {entry.digest}"
    return [] if got == entry.digest else [Finding(shard=entry.name, what=what)]
