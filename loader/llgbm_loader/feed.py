"""The next batches of one iteration in order, and their hand-over to the consumer."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llgbm_loader.batch import BatchPlan
from llgbm_loader.device import SideStream
from llgbm_loader.reader_threads import Assembly, FeedOptions, ReaderThread, Work
from llgbm_loader.ring import BufferPool, Held
from llgbm_shards.errors import UsageError


class Feed:
    """The batches of one iteration, in order."""

    def __init__(
        self,
        plan: BatchPlan,
        options: FeedOptions,
        batches: int,  # how many
        rows: Callable[[int], NDArray[np.int64]],  # the sample numbers of one of them
        pool: BufferPool | None,  # None when tokens are not wanted
        side: SideStream | None,  # None for the CPU
    ) -> None:
        self._batches, self._rows, self._side = batches, rows, side
        self._submitted = 0
        self._ahead: deque[Assembly] = deque()
        self._held = Held()
        self._awaited: Assembly | None = None
        self._closed = False
        self._pid = os.getpid()
        self.waited_s = 0.0
        self._work = Work(plan, options, pool, side)
        self._threads = [
            ReaderThread(target=self._work.run, name=f"llgbm-reader-{number}", daemon=True)
            for number in range(options.readers)
        ]
        # Daemons, stopped by this finalizer: also when the interpreter exits amid an iteration.
        self._stop = weakref.finalize(self, self._work.stop, self._threads)
        for thread in self._threads:
            thread.start()
        for _ in range(options.ahead):
            self._submit()

    def next(self) -> Assembly:
        """The next batch, whole; whatever went wrong while it was read is raised.

        UsageError where the loader was closed, and in a forked process, which has no reader threads.
        """
        if self._closed:
            raise loader_closed()
        if os.getpid() != self._pid:
            raise UsageError(
                "the iterator is of another process, from which this one was forked",
                do="Make a loader in the process that iterates it.",
            )
        if self._work.ring:
            self._work.ring.allow(self._held.count())
        try:
            self._awaited = assembly = self._ahead.popleft()
        except IndexError:  # close() came in between and took them all
            raise loader_closed() from None
        if self._closed:  # and may have looked for what is awaited before it was there
            raise loader_closed()
        began = time.perf_counter()
        assembly.done.get()
        self.waited_s = time.perf_counter() - began
        self._awaited = None
        if assembly.error is not None:
            raise assembly.error
        if self._side is not None and assembly.event is not None:
            self._side.receive(assembly.batch, assembly.event)
        elif assembly.use is not None and (buffer := assembly.use()) is not None:
            self._held.add(buffer)
            del buffer
        self._submit()
        return assembly

    def close(self) -> None:
        """Stop the readers, and tell a consumer that waits in another thread."""
        self._closed = True
        self._ahead.clear()
        self._work.stop(self._threads)
        self._stop.detach()  # only now: where Ctrl-C came in between, it stops what is left
        if (awaited := self._awaited) is not None:
            awaited.error = loader_closed()
            awaited.done.put(None)

    def _submit(self) -> None:
        if self._submitted < self._batches:
            numbers = self._rows(self._submitted)
            assembly = Assembly(numbers, len(numbers))
            self._ahead.append(assembly)
            self._submitted += 1
            for index in range(len(numbers)):
                self._work.tasks.put((assembly, index))


def loader_closed() -> UsageError:
    """The error for whoever iterates a closed loader, or waits for a batch while it is closed."""
    return UsageError("the loader is closed", do="Make a new one.")
