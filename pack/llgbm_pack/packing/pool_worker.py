"""A worker process of the pool: deaf to Ctrl-C, locked in while it may write, gone when its builder is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing.connection import wait

from llgbm_pack.packing.lock import take_worker_lock
from llgbm_pack.packing.shard import ShardPacker
from llgbm_pack.plan.values import PackContext, ShardJob
from llgbm_shards.errors import StorageError
from llgbm_shards.names import PACK_DIRECTORY


@dataclass(slots=True)
class Counts:
    """What is done, by job: one writer a place, so no lock that a killed worker could keep."""

    samples: Array[c_int64]  # checkpoints, (jobs,)
    source_bytes: Array[c_int64]  # (jobs,)


@dataclass(slots=True)
class _Worker:
    context: PackContext
    counts: Counts
    number: int = 0
    packer: ShardPacker | None = None

    def pack(self, number: int, job: ShardJob) -> None:
        self.number = number
        if self.packer is None:
            take_worker_lock(self.context.out / PACK_DIRECTORY)
            if _orphaned(timeout_s=0):
                os._exit(1)  # A new builder may already have looked at the lock: too late to write anything.
            self.packer = ShardPacker(self.context, self._count)
        self.packer.pack(job)

    def _count(self, source_bytes: int) -> None:
        self.counts.samples[self.number] += 1
        self.counts.source_bytes[self.number] += source_bytes


_worker: _Worker | None = None


def start(context: PackContext, counts: Counts, threads: int) -> None:
    """Initializer of the process; what can fail waits for the first job, to be an error of that job.

    Texts are tokenized by so many threads, unless the user has set another number in the environment.
    """
    global _worker  # noqa: PLW0603 - one a process is what an initializer is for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The builder ends it.
    threading.Thread(target=_die_with_builder, daemon=True).start()
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    _worker = _Worker(context, counts)


def pack(number: int, job: ShardJob) -> None:
    """Pack one shard, the job of that number, in this process."""
    if _worker is None:  # pragma: no cover - the initializer has run
        raise StorageError("worker was not started", where=job.name)
    _worker.pack(number, job)


def _die_with_builder() -> None:
    if _orphaned(timeout_s=None):
        os._exit(1)


def _orphaned(timeout_s: float | None) -> bool:
    """Whether the builder is gone, or goes before the timeout."""
    parent = multiprocessing.parent_process()
    return parent is not None and bool(wait([parent.sentinel], timeout_s))
