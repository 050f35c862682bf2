"""Run shard jobs in worker processes: few in flight, progress as it happens, no orphan that goes on writing."""

from __future__ import annotations

import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

import torch

from llgbm_pack.jobs import PackContext, ShardJob
from llgbm_pack.lock import worker_lock
from llgbm_pack.shard_record import PACK_DIRECTORY
from llgbm_pack.worker import ShardPacker
from llgbm_shards.errors import StorageError

_POLL_S: Final = 0.2
#: Called with (checkpoints done, source bytes done) so far in this run.
OnProgress = Callable[[int, int], None]


def run_jobs(
    context: PackContext, jobs: Sequence[ShardJob], *, workers: int, on_progress: OnProgress
) -> None:
    """Pack all jobs; returns when every one of them has its record.

    Args:
        context: What the jobs share.
        jobs: Shards still to pack.
        workers: Processes; with 1 (or one job) the work is done in this process.
        on_progress: Called from this thread now and then.

    Raises:
        LlgbmError: What a worker raised; the others are ended, and their unfinished shards are left to a resume.
        StorageError: A worker died.
    """
    if not jobs:
        return
    workers = min(workers, len(jobs))
    if workers == 1:
        _run_here(context, jobs, on_progress)
    else:
        _run_in_pool(context, jobs, workers, on_progress)


def _run_here(context: PackContext, jobs: Sequence[ShardJob], on_progress: OnProgress) -> None:
    done = [0, 0]

    def on_sample(size: int) -> None:
        done[0] += 1
        done[1] += size
        on_progress(*done)

    packer = ShardPacker(context, on_sample)
    for job in jobs:
        packer.pack(job)


def _run_in_pool(
    context: PackContext, jobs: Sequence[ShardJob], workers: int, on_progress: OnProgress
) -> None:
    # forkserver: one import of torch for all workers, and no fork of a process that has threads.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    _start_forkserver()
    samples, size = processes.Value(ctypes.c_int64), processes.Value(ctypes.c_int64)
    pool = ProcessPoolExecutor(workers, processes, _start_worker, (context, samples, size))
    started: dict[int, BaseProcess] = {}
    pending: set[Future[None]] = set()
    queue = iter(jobs)
    try:
        while True:
            # Two a worker: one in hand, one waiting, so that a failure stops the rest early.
            pending |= {
                pool.submit(_pack_in_worker, job)
                for job in itertools.islice(queue, 2 * workers - len(pending))
            }
            started.update(pool._processes or {})
            if not pending:
                break
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_progress(samples.value, size.value)
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        pool.shutdown(cancel_futures=True)
        raise _death([process.exitcode for process in started.values()]) from error
    except BaseException:
        _stop(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_forkserver() -> None:
    """Start the server of worker processes deaf to Ctrl-C, so that none of them prints a traceback of its own."""
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(exit_codes: Sequence[int | None]) -> StorageError:
    """What to say of a worker that died; the pool ends the others with SIGTERM."""
    code = next((code for code in exit_codes if code not in (None, 0, -signal.SIGTERM)), -signal.SIGTERM)
    do = "Finished shards are kept: run the same command again"
    if code is not None and code < 0:
        got = f"killed by {signal.Signals(-code).name}"
        do += "; if memory was short, with fewer --workers." if code == -signal.SIGKILL else "."
    else:
        got = f"ended with status {code}"
        do += '. A script that calls build() must do so under `if __name__ == "__main__":`.'
    return StorageError("a worker process died", where="build", got=got, do=do)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now; what they were writing is removed by whoever holds the lock."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


_make_packer: Callable[[], ShardPacker] | None = None
_packer: ShardPacker | None = None
_held: list[Any] = []


def _start_worker(context: PackContext, samples: Synchronized[int], size: Synchronized[int]) -> None:
    """Set up a worker process: quiet on Ctrl-C (the builder ends it), gone when the builder is gone."""
    global _make_packer  # noqa: PLW0603 - one packer a process is what an initializer is for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    lock = worker_lock(context.out / PACK_DIRECTORY)
    lock.__enter__()
    _held.append(lock)
    if _orphaned(timeout=0):
        os._exit(1)  # A new builder may already have looked at the lock: too late to write anything.
    torch.set_num_threads(1)

    def on_sample(done: int) -> None:
        with samples.get_lock(), size.get_lock():
            samples.value += 1
            size.value += done

    # Made with the first job: what goes wrong then is an error of that job, not a worker that cannot start.
    _make_packer = functools.partial(ShardPacker, context, on_sample)


def _pack_in_worker(job: ShardJob) -> None:
    global _packer  # noqa: PLW0603 - see _start_worker
    if _packer is None:
        if _make_packer is None:  # pragma: no cover - the initializer has run
            raise StorageError("worker was not started", where=job.name)
        _packer = _make_packer()
    _packer.pack(job)


def _die_with_parent() -> None:
    if _orphaned(timeout=None):
        os._exit(1)


def _orphaned(timeout: float | None) -> bool:
    """Whether the builder is gone, or goes before the timeout."""
    parent = multiprocessing.parent_process()
    return parent is not None and bool(wait_for([parent.sentinel], timeout))
