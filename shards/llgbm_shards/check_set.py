"""Check a set: is every byte the byte that was written?

The commit record proves itself, then the index and the other files; the index says where every member stands
and what it hashes to. So each member is judged alone: damage to one, headers included, hides no other.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from llgbm_shards.arguments import (
    LEAST_SEED,
    MOST_SEED,
    MOST_WORKERS,
    is_number,
    is_one_of,
    local_path,
    require,
    shown,
    whole_number,
)
from llgbm_shards.check_parity import check_parity_file, check_xor, parity_entries
from llgbm_shards.deep import DeepCheck
from llgbm_shards.directory import require_set_directory
from llgbm_shards.errors import DamageError, LlgbmError, UsageError
from llgbm_shards.findings import LEVELS, CheckReport, Finding
from llgbm_shards.names import INDEX_NAME, RECORD_NAME, parity_name
from llgbm_shards.presence import check_extra, check_files, check_presence, finding_of, identify, read_twice
from llgbm_shards.record import CommitRecord, ShardEntry, checked_digest
from llgbm_shards.scan import ShardScan, scan_shard
from llgbm_shards.shardset import ShardSet

T = TypeVar("T")
Progress = Callable[[int], None]
_DAY_S: Final = 86_400


def check(
    path: str | os.PathLike[str],
    *,
    level: str = "full",
    sample: float = 1.0,
    seed: int | None = None,
    expect_digest: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a set and list everything that is wrong with it.

    Args:
        path: Directory of the set.
        level: ``quick``: the record, presence, sizes, and digests of all files but the shards. ``full``: every
            byte of every shard too. ``deep``: the values as well, see :mod:`llgbm_shards.deep`.
        sample: Fraction of the samples to read, for ``full`` and ``deep``; 1 reads all.
        seed: Which samples that fraction is, a number of 64 bits; None: the day's number. Seeds that follow each
            other read samples that follow each other, so that 1/sample runs on successive days read them all.
        expect_digest: Digest the commit record must have.
        workers: Threads, 1 to 1,024; None: one a core this process may use.
        progress: Called with the count of bytes of shards and parity read since the last call, from any thread.

    Raises:
        UsageError: An argument is of a wrong kind or out of its range.
        StorageError: The directory itself cannot be read.
    """
    if not is_one_of(level, LEVELS):
        raise UsageError("unknown level", where="check", expected=" or ".join(LEVELS), got=shown(level))
    if not (is_number(sample) and 0 < sample <= 1):
        raise UsageError("not a fraction", where="sample", expected="above 0, at most 1", got=shown(sample))
    seed = int(time.time() // _DAY_S) if seed is None else whole_number("seed", seed, LEAST_SEED, MOST_SEED)
    threads = (
        len(os.sched_getaffinity(0)) if workers is None else whole_number("workers", workers, 1, MOST_WORKERS)
    )
    require(progress is None or callable(progress), "progress", "a function of one number", progress)
    pinned = None if expect_digest is None else checked_digest(expect_digest)
    root = local_path("path", path)
    require_set_directory(root)
    return _Check(os.fspath(path), root, level, _Window(sample, seed), threads, progress).run(pinned)


@dataclass(frozen=True, slots=True)
class _Window:
    """Which samples are read: those whose place on a circle lies in a window that the seed moves on by its width."""

    fraction: float
    seed: int

    def __contains__(self, key: str) -> bool:
        place = int.from_bytes(blake3(key.encode()).digest()[:6], "big") / 2**48
        return (place - self.seed * self.fraction) % 1.0 < self.fraction


class _Check:
    """The state of one check."""

    def __init__(
        self, shown: str, root: Path, level: str, window: _Window, workers: int, progress: Progress | None
    ) -> None:
        self.shown, self.root, self.level, self.window = shown, root, level, window
        self.workers, self.progress = workers, progress
        self.start = time.monotonic()
        self.findings: list[Finding] = []
        self.scans: list[ShardScan] = []

    def run(self, expect_digest: str | None) -> CheckReport:
        try:
            shard_set = read_twice(lambda: ShardSet(self.root), RECORD_NAME, self.findings)
        except LlgbmError as error:
            self.findings.append(finding_of(error, RECORD_NAME))
            return self._report(None)
        record, directory = shard_set.record, shard_set.directory
        if expect_digest is not None and record.digest != expect_digest:
            what = f"another set than expected: expected digest {expect_digest}, got {record.digest}"
            self.findings.append(Finding(shard=RECORD_NAME, what=what))
        self.findings += check_files(directory, record)
        presence = check_presence(directory, record)
        self.findings += presence.findings
        read = self.level != "quick"
        self.findings += [check_extra(directory, name, record, read=read) for name in presence.extra]
        sound_index = self._index(shard_set)
        self._parity(shard_set)
        if read:
            self._scan(shard_set, presence.there, sound_index)
            if self.level == "deep" and sound_index:
                self._xor(shard_set)
        return self._report(record)

    def _index(self, shard_set: ShardSet) -> bool:
        """Whether the index can be used; what is wrong with it is noted."""
        if any(finding.shard == INDEX_NAME and finding.kind != "transient" for finding in self.findings):
            return False
        try:
            self.findings += _index_fits(shard_set.record, shard_set.index(["key", "shard", "split"]))
            _ = shard_set.places  # Parsed here once; the threads share it.
        except LlgbmError as error:
            self.findings.append(finding_of(error, INDEX_NAME))
            return False
        return True

    def _parity(self, shard_set: ShardSet) -> None:
        """Read the parity files; as of the samples, only a share where a share is asked for."""
        whole = self.level == "quick" or self.window.fraction == 1
        entries = [one for one in parity_entries(shard_set.record) if whole or one.name in self.window]
        check_one = functools.partial(check_parity_file, shard_set.directory, progress=self.progress)
        self._in_threads(check_one, entries)

    def _xor(self, shard_set: ShardSet) -> None:
        """Whether the parity of what is sound and was read is the XOR of the shards."""
        wrong = {finding.shard for finding in self.findings if finding.kind != "transient"}
        pairs = {entry.name: parity_name(entry.name) for entry in shard_set.record.shards}
        chosen = {entry.name for entry in parity_entries(shard_set.record)} - wrong
        whole = self.window.fraction == 1
        shards = [
            shard
            for shard, parity in pairs.items()
            if parity in chosen and shard not in wrong and (whole or parity in self.window)
        ]
        self._in_threads(functools.partial(check_xor, shard_set), shards)

    def _in_threads(self, work: Callable[[T], list[Finding]], items: Sequence[T]) -> None:
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            self.findings += [finding for found in pool.map(work, items) for finding in found]

    def _scan(self, shard_set: ShardSet, present: list[ShardEntry], sound_index: bool) -> None:
        """Read the shards that are there; one thread a core, since hashing and reading release the GIL."""
        deep = DeepCheck(shard_set) if self.level == "deep" and sound_index else None
        scan = functools.partial(self._scan_one, shard_set, sound_index, deep)
        if self.workers == 1 or len(present) == 1:
            self.scans = list(map(scan, present))
        else:
            with ThreadPoolExecutor(max_workers=self.workers) as pool:
                self.scans = list(pool.map(scan, present))
        self.findings += [finding for one in self.scans for finding in one.findings]

    def _scan_one(
        self, shard_set: ShardSet, sound_index: bool, deep: DeepCheck | None, shard: ShardEntry
    ) -> ShardScan:
        whole = self.window.fraction == 1
        try:
            samples = list(shard_set.shard_extents(shard.name)) if sound_index else None
        except DamageError as error:
            return ShardScan([finding_of(error, error.shard)])
        if samples is not None and not whole:
            samples = [sample for sample in samples if sample[0].key in self.window]
        scan = scan_shard(
            shard_set.shards[shard.name],
            samples,
            whole=whole or samples is None,
            inspect=deep.inspect if deep else None,
            progress=self.progress,
        )
        if scan.nothing_right and (holds := identify(shard_set.directory, shard.name, shard_set.record)):
            others = [finding for finding in scan.findings if finding.kind != "damage"]
            scan.findings = [*others, Finding(shard=shard.name, what=f"not the shard of this name: {holds}")]
        return scan

    def _report(self, record: CommitRecord | None) -> CheckReport:
        shards = record.shards if record else ()
        return CheckReport(
            path=self.shown,
            level=self.level,
            digest=record.digest if record else "",
            base=record.base if record else "",
            samples=sum(shard.samples for shard in shards),
            shards=len(shards),
            sample=self.window.fraction,
            seed=self.window.seed,
            samples_read=sum(scan.samples_read for scan in self.scans),
            bytes_read=sum(scan.bytes_read for scan in self.scans),
            seconds=time.monotonic() - self.start,
            findings=tuple(sorted(set(self.findings))),
        )


def _index_fits(record: CommitRecord, index: pa.Table) -> Iterator[Finding]:
    """The index must name the shards, splits and sample counts that the record names, and no key twice."""
    counts = Counter[tuple[str, str]]()
    grouped = index.group_by(["shard", "split"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
    for row in grouped:
        counts[row["shard"], row["split"]] = row["count_all"]
    expected = {(shard.name, shard.split): shard.samples for shard in record.shards}
    for name, split in sorted({*counts, *expected}):
        got, want = counts.get((name, split), 0), expected.get((name, split), 0)
        if got != want:
            what = f"index and record disagree on {name}, split {split}: {got} and {want} samples"
            yield Finding(shard=INDEX_NAME, what=what)
    keys = index.column("key")
    if pc.count_distinct(keys).as_py() != len(keys):
        twice = pc.value_counts(keys).to_pylist()
        for key in (row["values"] for row in twice if row["counts"] > 1):
            yield Finding(shard=INDEX_NAME, key=key, what="the key stands in the index more than once")
