"""Run shard jobs in worker processes: few in flight, progress as it happens, no orphan that goes on writing."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Final

from llgbm_pack.packing import pool_worker
from llgbm_pack.packing.shard import ShardPacker
from llgbm_pack.plan.values import PackContext, ShardJob
from llgbm_shards.errors import StorageError

_POLL_S: Final = 0.2
#: Called now and then, from the builder's thread, with (checkpoints done, source bytes done) so far in this run.
OnProgress = Callable[[int, int], None]


def run_jobs(
    context: PackContext, jobs: Sequence[ShardJob], workers: int, on_progress: OnProgress, tokenizer: Any
) -> None:
    """Pack all jobs; returns when every one of them has its record. One worker, or one job: in this process.

    The tokenizer is the set's, for work in this process, or None without one; worker processes load it themselves.

    Raises:
        LlgbmError: What a worker raised; the others are ended, and their unfinished shards are left to a resume.
        StorageError: A worker died.
    """
    workers = min(workers, len(jobs))
    if workers > 1:
        _run_in_pool(context, jobs, workers, on_progress)
    elif jobs:
        _run_here(context, jobs, on_progress, tokenizer)


def _run_here(
    context: PackContext, jobs: Sequence[ShardJob], on_progress: OnProgress, tokenizer: Any
) -> None:
    done = [0, 0]

    def on_sample(size: int) -> None:
        done[0] += 1
        done[1] += size
        on_progress(*done)

    packer = ShardPacker(context, on_sample, tokenizer)
    for job in jobs:
        packer.pack(job)


def _run_in_pool(
    context: PackContext, jobs: Sequence[ShardJob], workers: int, on_progress: OnProgress
) -> None:
    # forkserver: one import of torch for all workers, and no fork of a process that has threads.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([pool_worker.__name__])
    _start_forkserver()
    counts = pool_worker.Counts(*(processes.RawArray(ctypes.c_int64, len(jobs)) for _ in range(2)))
    # Text tokenizers take every core for each process unless told otherwise.
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    pool = ProcessPoolExecutor(workers, processes, pool_worker.start, (context, counts, threads))
    started: dict[int, BaseProcess] = {}
    pending: set[Future[None]] = set()
    queue = enumerate(jobs)
    try:
        while True:
            # Two a worker: one in hand, one waiting, so that a failure stops the rest early.
            with _without_main():
                few = itertools.islice(queue, 2 * workers - len(pending))
                pending |= {pool.submit(pool_worker.pack, number, job) for number, job in few}
            started.update(pool._processes or {})
            if not pending:
                break
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_progress(sum(counts.samples), sum(counts.source_bytes))
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        _stop(pool)  # The pool itself may overlook one that was just being started, and wait for it for ever.
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


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Workers need nothing of the user's script; imported there again, all of it outside of its guard would run."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _death(exit_codes: Sequence[int | None]) -> StorageError:
    """What to say of a worker that died; the pool ends the others with SIGTERM."""
    code = next((code for code in exit_codes if code not in (None, 0, -signal.SIGTERM)), -signal.SIGTERM)
    got = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
    return StorageError(
        "a worker process died",
        where="build",
        got=got,
        do="Finished shards are kept: run the same command again; if memory was short, with fewer --workers.",
    )


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now; what they were writing is removed by whoever holds the lock."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
