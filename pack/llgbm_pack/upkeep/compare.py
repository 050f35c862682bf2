"""Compare a set with a zoo: which checkpoints are new, changed or gone since it was packed."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from llgbm_pack.sources.tasks import zoo_tasks
from llgbm_pack.sources.zoo import Candidate, ZooListing, walk_zoo
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
    """How a zoo differs from the set that was packed from it; paths are relative to the zoo.

    Attributes:
        zoo: The zoo, as the user named it.
        unchanged: Checkpoints whose weights, config, task and texts are still those they were packed from.
        skipped: Checkpoints that the build skipped and that are still there.
        new: Checkpoints that are neither in the set nor among those it skipped.
        changed: Checkpoints of which a build would make another sample, or whose sample is too damaged to tell.
        gone: Checkpoints of the set that are not in the zoo.
        unjudged: What was not compared, for its source is not at hand.
    """

    zoo: str
    unchanged: int
    skipped: int
    new: tuple[str, ...]
    changed: tuple[Change, ...]
    gone: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def same(self) -> bool:
        """The zoo is as it was."""
        return not (self.new or self.changed or self.gone)

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return {**asdict(self), "same": self.same}


def compare_with_zoo(
    path: str | os.PathLike[str],
    zoo: str | os.PathLike[str],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> AgainstReport:
    """Walk a zoo as the build did, digest the weights of every checkpoint of the set, read its config and texts.

    Args:
        path: The set.
        zoo: The zoo; it may lie elsewhere than when the set was packed.
        workers: Threads; None: one a core this process may use.
        progress: Called with the count of bytes read since the last call, from any thread.

    Raises:
        DamageError: The set's record, index or skipped list is damaged.
        UsageError: The zoo is not a directory, or its manifest is not sound.
        StorageError: Set or zoo cannot be read.
    """
    opened = ShardSet(path)
    options = opened.record.options
    listing = walk_zoo(Path(zoo), options.get("include", ()), options.get("exclude", ()))
    candidates = {one.path: one for one in listing.checkpoints[: options.get("limit") or None]}
    packed: list[str] = opened.index(["checkpoint"]).column("checkpoint").to_pylist()
    skipped = set(skipped_checkpoints(read_listed(opened.directory, opened.record.file(SKIPPED_NAME))))
    sources = SourceJudge(opened, zoo_tasks(Path(zoo), walk_zoo(Path(zoo)).nameable))

    def judge(number: int) -> str:
        return _change(opened, number, candidates[packed[number]], sources, progress)

    present = [number for number, name in enumerate(packed) if name in candidates]
    with ThreadPoolExecutor(max_workers=workers or len(os.sched_getaffinity(0))) as pool:
        verdicts = list(pool.map(judge, present))
    changed = [Change(packed[number], what) for number, what in zip(present, verdicts, strict=True) if what]
    gone, refused = _absent(packed, candidates, listing)
    known = skipped.union(packed)
    return AgainstReport(
        zoo=os.fspath(zoo),
        unchanged=verdicts.count(""),
        skipped=len(skipped & candidates.keys()),
        new=tuple(name for name in candidates if name not in known),
        changed=tuple(sorted([*changed, *refused], key=lambda change: change.checkpoint)),
        gone=tuple(gone),
        unjudged=sources.unjudged,
    )


def _absent(
    packed: list[str], candidates: Mapping[str, Candidate], listing: ZooListing
) -> tuple[list[str], list[Change]]:
    """Checkpoints of the set that the walk does not give: gone, or there but not packable any more."""
    reasons = {bad.path: bad.reason for bad in listing.rejected}
    absent = [name for name in packed if name not in candidates]
    refused = [Change(name, reasons[name]) for name in absent if name in reasons]
    return sorted(name for name in absent if name not in reasons), refused


def _change(
    opened: ShardSet,
    number: int,
    candidate: Candidate,
    sources: SourceJudge,
    progress: Callable[[int], None] | None,
) -> str:
    """What is different about one checkpoint; "" when nothing is."""
    try:
        raw = opened.read_member(opened.extents(number)[-1])
        info = load_json(raw, where="json", max_bytes=MAX_JSON_BYTES)
        expected, other = info["source_digest"], sources.change(info, candidate)
    except (DamageError, HeaderError, KeyError, TypeError) as error:
        return f"its sample does not tell: {error}"
    try:
        actual = _file_digest(candidate.weights, progress)
    except OSError as error:
        return f"its weights cannot be read: {error.strerror}"
    if actual == expected:
        return other
    return "; ".join(filter(None, [f"other weights: packed from digest {expected}, now {actual}", other]))


def _file_digest(path: Path, progress: Callable[[int], None] | None) -> str:
    digest = blake3()
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    done = 0
    with opened_file(path) as fd:
        while count := _CHUNK - read_into(fd, [buffer], done):
            digest.update(buffer[:count])
            done += count
            if progress is not None:
                progress(count)
    return digest.hexdigest()
