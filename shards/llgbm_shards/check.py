"""Check a set: is every byte the byte that was written?

The commit record proves itself, then the index and the other files; the index says where every member stands
and what it hashes to. So each member is judged alone: damage to one, headers included, hides no other.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llgbm_shards.canonical import blake3_hex
from llgbm_shards.errors import DamageError, LlgbmError, StorageError, UsageError
from llgbm_shards.findings import LEVELS, CheckReport, Finding, Kind
from llgbm_shards.index import INDEX_NAME
from llgbm_shards.record import RECORD_NAME, CommitRecord, FileEntry, ShardEntry
from llgbm_shards.scan import ShardScan, scan_shard
from llgbm_shards.shardset import MemberExtent, ShardSet, read_record
from llgbm_shards.storage import TEMPORARY, read_file

Progress = Callable[[int], None]


def check(
    path: str | os.PathLike[str],
    *,
    level: str = "full",
    expect_digest: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a set and list everything that is wrong with it.

    Args:
        path: Directory of the set.
        level: ``quick``: the record, presence, sizes, and digests of all files but the shards. ``full``: every
            byte of every shard too.
        expect_digest: Digest the commit record must have.
        progress: Called with the count of shard bytes read since the last call, from any thread.

    Raises:
        UsageError: Unknown level.
        StorageError: The directory itself cannot be read.
    """
    if level not in LEVELS:
        raise UsageError("unknown level", where="check", expected=" or ".join(LEVELS), got=repr(level))
    start = time.monotonic()
    root = Path(path)
    if not root.is_dir():
        raise StorageError("no such directory", where=str(path), do="Name the directory that a build wrote.")
    try:
        record = read_record(root)
    except LlgbmError as error:
        return _report(path, level, None, 0, start, [_finding(error, RECORD_NAME)])
    findings = [*_pinned(record, expect_digest), *_files(root, record), *_presence(root, record)]
    rows = _rows(root, record)
    if isinstance(rows, Finding):
        findings += [rows] if not any(finding.shard == INDEX_NAME for finding in findings) else []
        rows = {}
    findings += _index_fits(record, rows) if rows else []
    read = 0
    if level == "full":
        scans = _scan(root, record, rows, progress)
        read = sum(scan.bytes_read for scan in scans)
        findings += [finding for scan in scans for finding in scan.findings]
    return _report(path, level, record, read, start, findings)


def _report(
    path: str | os.PathLike[str],
    level: str,
    record: CommitRecord | None,
    read: int,
    start: float,
    findings: list[Finding],
) -> CheckReport:
    return CheckReport(
        path=os.fspath(path),
        level=level,
        digest=record.digest if record else "",
        samples=sum(shard.samples for shard in record.shards) if record else 0,
        shards=len(record.shards) if record else 0,
        bytes_read=read,
        seconds=time.monotonic() - start,
        findings=tuple(sorted(set(findings))),
    )


def _finding(error: LlgbmError, shard: str) -> Finding:
    kind: Kind = "unreadable" if isinstance(error, StorageError) else "damage"
    return Finding(shard=shard, what=str(error), kind=kind)


def _pinned(record: CommitRecord, expect_digest: str | None) -> Iterator[Finding]:
    if expect_digest is not None and record.digest != expect_digest:
        what = f"another set than expected: expected digest {expect_digest}, got {record.digest}"
        yield Finding(shard=RECORD_NAME, what=what)


def _files(root: Path, record: CommitRecord) -> Iterator[Finding]:
    """Index, skipped list and tokenizer files: small, so always whole."""
    for entry in record.files:
        try:
            yield from _file(root / entry.name, entry)
        except StorageError as error:
            yield _finding(error, entry.name)


def _file(path: Path, entry: FileEntry) -> Iterator[Finding]:
    if not path.exists():
        yield Finding(shard=entry.name, what="missing")
        return
    data = read_file(path)
    if len(data) != entry.size:
        yield Finding(shard=entry.name, what=f"wrong size: expected {entry.size} bytes, got {len(data)}")
    elif blake3_hex(data) != entry.digest:
        yield Finding(
            shard=entry.name, what=f"damaged: expected digest {entry.digest}, got {blake3_hex(data)}"
        )


def _presence(root: Path, record: CommitRecord) -> Iterator[Finding]:
    """Shards missing, of another size, or not of this set."""
    for entry in record.shards:
        path = root / entry.name
        if not path.is_file():
            yield Finding(shard=entry.name, what="missing")
        elif path.stat().st_size != entry.size:
            what = f"wrong size: expected {entry.size} bytes, got {path.stat().st_size}"
            yield Finding(shard=entry.name, what=what)
    known = {entry.name for entry in record.shards}
    for path in sorted(root.iterdir()):
        if path.name.startswith(TEMPORARY):
            yield Finding(shard=path.name, what="a file that a writer left unfinished")
        elif path.suffix == ".tar" and path.name not in known:
            yield Finding(shard=path.name, what="a shard that is not of this set")


def _rows(root: Path, record: CommitRecord) -> dict[str, list[list[MemberExtent]]] | Finding:
    """Shard name -> members of each of its samples, from the index; or what keeps the index from being read."""
    try:
        opened = ShardSet(root)
        return {shard.name: list(opened.shard_extents(shard.name)) for shard in record.shards}
    except (DamageError, StorageError) as error:
        return _finding(error, INDEX_NAME)


def _index_fits(record: CommitRecord, rows: dict[str, list[list[MemberExtent]]]) -> Iterator[Finding]:
    """The index must count the samples the record counts, and no key twice."""
    for shard in record.shards:
        got = len(rows[shard.name])
        if got != shard.samples:
            what = f"index and record disagree on {shard.name}: {got} and {shard.samples} samples"
            yield Finding(shard=INDEX_NAME, what=what)
    keys = Counter(sample[0].key for samples in rows.values() for sample in samples)
    for key in (key for key, count in keys.items() if count > 1):
        yield Finding(shard=INDEX_NAME, key=key, what="the key stands in the index more than once")


def _scan(
    root: Path,
    record: CommitRecord,
    rows: dict[str, list[list[MemberExtent]]],
    progress: Progress | None,
) -> list[ShardScan]:
    """Read every shard that is there; one thread a core, since hashing and reading release the GIL."""

    def scan(shard: ShardEntry) -> ShardScan:
        return scan_shard(root / shard.name, shard, rows.get(shard.name), progress)

    present = [shard for shard in record.shards if (root / shard.name).is_file()]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(scan, present))
