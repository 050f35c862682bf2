"""bench: how fast a set can be fed to a training loop here, and what limits it."""

from __future__ import annotations

import itertools
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from llgbm_loader import StreamingLoader
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import read_into

#: At most this many bytes of shards are read in each phase.
_ENOUGH_BYTES: Final = 4 << 30
_CHUNK: Final = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What was measured; rates are samples a second."""

    path: str  # the set
    device: str  # where batches went
    batch_size: int  # rows of a batch
    batches: int  # batches of each phase
    samples: int  # samples of each phase, of all splits
    sample_bytes: int  # mean bytes of a sample in its shard
    batch: dict[str, str]  # key -> shape and dtype of one batch's entries
    storage_rate: float  # plain reads of the same shards with the page cache dropped, as many threads
    cold_rate: float  # the loader with the page cache dropped
    warm_rate: float  # the loader with the bytes in memory: what decoding, verifying and copying allow
    step_ms: float  # length of a training step that is to be fed, in ms

    @property
    def limit(self) -> str:
        """``storage`` or ``cpu``, whichever is slower."""
        return "storage" if self.storage_rate < self.warm_rate else "cpu"

    @property
    def needed_rate(self) -> float:
        """Samples a second that steps of ``step_ms`` take."""
        return self.batch_size * 1000 / self.step_ms

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return {**asdict(self), "limit": self.limit, "needed_rate": self.needed_rate}


def bench_set(
    path: str, *, batch_size: int, device: str, step_ms: float, readers: int, verify: str
) -> BenchReport:
    """Read a set, all its splits, three ways: plainly, through the loader cold, and through the loader warm.

    ``readers`` are the reader threads. The length of the step to be fed, in ms, is only handed on to the report.
    """
    shard_set = ShardSet(path)
    set_bytes = sum(shard.size for shard in shard_set.record.shards)
    sample_bytes = max(1, set_bytes // max(1, len(shard_set)))
    batches = max(1, min(len(shard_set), _ENOUGH_BYTES // sample_bytes) // batch_size)
    with StreamingLoader(
        path,
        split=None,  # the plain reads take all splits too
        batch_size=batch_size,
        device=device,
        readers=readers,
        verify=verify,
        remainder="pad",
        shuffle="shards",
    ) as loader:
        _drop_cache(shard_set)
        cold_rate, samples, batch = _epoch(loader, batches)
        warm_rate, _, _ = _epoch(loader, batches)
        _drop_cache(shard_set)
        storage_rate = _plain_reads(shard_set, batches * batch_size * sample_bytes, readers) / sample_bytes
    return BenchReport(
        path=path,
        device=device,
        batch_size=batch_size,
        batches=batches,
        samples=samples,
        sample_bytes=sample_bytes,
        batch=batch,
        storage_rate=storage_rate,
        cold_rate=cold_rate,
        warm_rate=warm_rate,
        step_ms=step_ms,
    )


def _epoch(loader: StreamingLoader, batches: int) -> tuple[float, int, dict[str, str]]:
    """Samples a second over the first batches of an epoch, how many that were, and what the first one looks like."""
    loader.set_epoch(0)
    shown: dict[str, str] = {}
    samples = 0
    start = time.monotonic()
    for batch in itertools.islice(loader, batches):
        samples += int(batch["valid"].sum())
        shown = shown or {
            key: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for key, value in batch.items()
            if hasattr(value, "dtype")
        }
    return samples / (time.monotonic() - start), samples, shown


def _drop_cache(shard_set: ShardSet) -> None:
    """Ask the kernel to forget the shards' pages, so that the next read comes from storage."""
    for name in shard_set.shards:
        with shard_set.open_shard(name) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _plain_reads(shard_set: ShardSet, enough: int, readers: int) -> float:
    """Bytes a second of reading shards into reused buffers, a thread a shard."""

    def read(name: str) -> int:
        buffer = memoryview(mmap.mmap(-1, _CHUNK))
        done = 0
        with shard_set.open_shard(name) as fd:
            while count := len(buffer) - read_into(fd, [buffer], done):
                done += count
        return done

    sizes = itertools.accumulate(shard.size for shard in shard_set.record.shards)
    befores = zip(shard_set.shards, itertools.chain([0], sizes), strict=False)
    chosen = [name for name, before in befores if before < enough]
    start = time.monotonic()
    with ThreadPoolExecutor(readers) as pool:
        total = sum(pool.map(read, chosen))
    return total / (time.monotonic() - start)
