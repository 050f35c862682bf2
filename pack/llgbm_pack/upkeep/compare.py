"""Compare a set with a zoo: which checkpoints are new, changed or gone since it was packed."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from llgbm_pack.sources.tasks import zoo_tasks
from llgbm_pack.sources.zoo import Candidate, walk_zoo
from llgbm_pack.upkeep.compare_sources import SourceJudge
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.names import SKIPPED_NAME
from llgbm_shards.record import read_listed
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.shardset import ShardSet
from llgbm_shards.skipped import skipped_checkpoints
from llgbm_shards.storage import opened_file, read_into

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """A checkpoint of the set that is not what it was, and in which way."""

    checkpoint: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AgainstReport:
    """How a zoo differs from the set that was packed from it; paths are relative to the zoo."""

    zoo: str  # as the user named it
    unchanged: int  # checkpoints whose weights, config, task and texts are still those they were packed from
    skipped: int  # checkpoints that the build skipped and that are still there
    new: tuple[str, ...]  # checkpoints that are neither in the set nor among those it skipped
    changed: tuple[Change, ...]  # a build would make another sample, or the sample is too damaged to tell
    gone: tuple[str, ...]  # checkpoints of the set that are not in the zoo
    unjudged: tuple[str, ...]  # what was not compared, for its source is not at hand

    @property
    def same(self) -> bool:
        """The zoo is as it was."""
        return not (self.new or self.changed or self.gone)

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return {**asdict(self), "same": self.same}


def compare_with_zoo(path: str | os.PathLike[str], zoo: str | os.PathLike[str]) -> AgainstReport:
    """Walk a zoo as the build did, digest the weights of every checkpoint of the set, read its config and texts.

    Raises:
        DamageError: The set's record, index or skipped list is damaged.
        UsageError: The zoo is not a directory, or its manifest is not sound.
        StorageError: Set or zoo cannot be read.
    """
    shard_set = ShardSet(path)
    options = shard_set.record.options
    listing = walk_zoo(Path(zoo), options.get("include", ()), options.get("exclude", ()))
    checkpoints = listing.checkpoints[: options.get("limit") or None]
    candidates = {candidate.path: candidate for candidate in checkpoints}
    packed: list[str] = shard_set.index(["checkpoint"]).column("checkpoint").to_pylist()
    skipped = set(skipped_checkpoints(read_listed(shard_set.directory, shard_set.record.file(SKIPPED_NAME))))
    sources = SourceJudge(shard_set, zoo_tasks(Path(zoo), walk_zoo(Path(zoo)).nameable))

    def judge(number: int) -> str:
        return _change(shard_set, number, candidates[packed[number]], sources)

    present = [number for number, name in enumerate(packed) if name in candidates]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        verdicts = list(pool.map(judge, present))
    changed = [Change(packed[number], what) for number, what in zip(present, verdicts, strict=True) if what]
    absent = sorted(set(packed) - candidates.keys())
    # There, but not packable any more.
    reasons = {bad.path: bad.reason for bad in listing.rejected}
    changed += [Change(name, reasons[name]) for name in absent if name in reasons]
    known = skipped.union(packed)
    return AgainstReport(
        zoo=os.fspath(zoo),
        unchanged=verdicts.count(""),
        skipped=len(skipped & candidates.keys()),
        new=tuple(name for name in candidates if name not in known),
        changed=tuple(sorted(changed, key=lambda change: change.checkpoint)),
        gone=tuple(name for name in absent if name not in reasons),
        unjudged=sources.unjudged,
    )


def _change(shard_set: ShardSet, number: int, candidate: Candidate, sources: SourceJudge) -> str:
    """What is different about one checkpoint; "" when nothing is."""
    try:
        raw = shard_set.read_member(shard_set.extents(number)[-1])
        info = load_json(raw, where="json", max_bytes=MAX_JSON_BYTES)
        expected, other = info["source_digest"], sources.change(info, candidate)
    except (DamageError, HeaderError, KeyError, TypeError) as error:
        return f"its sample does not tell: {error}"
    try:
        actual = _file_digest(candidate.weights)
    except OSError as error:
        return f"its weights cannot be read: {error.strerror}"
    if actual == expected:
        return other
    return "; ".join(filter(None, [f"other weights: packed from digest {expected}, now {actual}", other]))


def _file_digest(path: Path) -> str:
    digest = blake3()
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    done = 0
    with opened_file(path) as fd:
        while count := _CHUNK - read_into(fd, [buffer], done):
            digest.update(buffer[:count])
            done += count
    return digest.hexdigest()
