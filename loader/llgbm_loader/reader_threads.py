"""Reader threads that fill batches, row by row.

They know the work, never the feed: so a dropped iterator takes the feed with it, and its end stops them.
"""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.batch import BatchPlan, HostBatch
from llgbm_loader.device import SideStream
from llgbm_loader.order import PADDING_ROW
from llgbm_loader.reader import SampleReader
from llgbm_loader.ring import BufferPool, Ring, Stopped
from llgbm_shards.errors import DamageError

Batch = dict[str, Any]


@dataclass(slots=True)
class Assembly:
    """One batch in the making."""

    numbers: NDArray[np.int64]  # (B,) sample numbers, or PADDING_ROW
    left: int  # rows still to be read
    lock: threading.Lock = field(default_factory=threading.Lock)  # while buffers are taken or rows counted
    host: HostBatch | None = None  # once buffers are taken
    use: weakref.ref[Any] | None = None  # dies with the last tensor on its ring buffer
    damage: dict[int, DamageError] = field(default_factory=dict)  # the damaged samples, by row
    error: BaseException | None = None  # what ended it
    error_row: int = sys.maxsize  # the row in which it did; a later row is not read then
    nbytes: int = 0  # bytes read
    batch: dict[str, Tensor] = field(default_factory=dict)  # the batch's tensors, once whole
    lists: dict[str, list[str]] = field(default_factory=dict)  # its keys and index columns, likewise
    event: torch.Event | None = None  # after which it is whole on its device
    # Gets an item when the batch or the error is there. No Event: Ctrl-C amid its code in Python leaves its lock held,
    # and the reader that sets it waits forever.
    done: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)

    def fail(self, error: BaseException, row: int) -> None:
        """Keep an error of a row; of several that of the first row, however the readers ran."""
        if row < self.error_row:
            self.error, self.error_row = error, row


def _without_frames(error: DamageError) -> DamageError:
    """An error that goes with a batch: its frames hold the batch's buffer, which would then never be free."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedOptions:
    """How a feed reads."""

    epoch: int  # for the draws
    verify: bool  # check the digest of each member
    # (samples,), shared by all iterations: samples found whole, which are not checked again; None checks each time.
    verified: NDArray[np.bool_] | None
    readers: int  # threads
    ahead: int  # batches read ahead
    skip_damage: bool  # damaged samples become invalid rows


class ReaderThread(threading.Thread):
    """A thread of some iteration, told from all others by its type."""


class Work:
    """What reader threads share: the tasks, the buffers, and how a row and a batch are made."""

    #: Here, and no contextlib at the end: when the interpreter exits, what modules hold may be gone before an iteration.
    _no_task = queue.Empty

    def __init__(
        self, plan: BatchPlan, options: FeedOptions, pool: BufferPool | None, side: SideStream | None
    ) -> None:
        self.plan = plan
        self.options = options
        self.side = side
        self.ring = Ring(pool, options.ahead, side.reclaim if side else None) if pool else None
        self.tasks: queue.SimpleQueue[tuple[Assembly, int] | None] = queue.SimpleQueue()
        self.stopped = False

    def run(self) -> None:
        """A reader thread's life."""
        reader: SampleReader | None = None
        try:
            while not self.stopped and (task := self.tasks.get()) is not None and not self.stopped:
                reader = self._do(*task, reader)
                del task  # or an idle reader would hold the batch's buffer
        finally:
            if reader is not None:
                reader.close()

    def _do(self, assembly: Assembly, index: int, reader: SampleReader | None) -> SampleReader | None:
        """Read one row; returns the reader, which is made here, where the consumer is told if that fails."""
        try:
            self._prepare(assembly, index)
            if reader is None:
                reader = SampleReader(self.plan.selection, self.plan.tokens, self.plan.conditions)
            self._read_row(assembly, index, reader)
        except Stopped:
            return reader
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer is told and raises it
            with assembly.lock:
                assembly.fail(error, index)
        with assembly.lock:
            assembly.left -= 1
            last = assembly.left == 0
        if last:
            self._complete(assembly)
        return reader

    def _prepare(self, assembly: Assembly, index: int) -> None:
        with assembly.lock:
            if assembly.host is None and assembly.error is None:
                try:
                    buffer = self.ring.take() if self.ring else None
                    assembly.use = None if buffer is None else weakref.ref(buffer)
                    assembly.host = self.plan.allocate(len(assembly.numbers), buffer)
                except Stopped:
                    raise
                except BaseException as error:  # noqa: BLE001 - known before another reader of the batch tries it
                    assembly.fail(error, index)

    def _read_row(self, assembly: Assembly, index: int, reader: SampleReader) -> None:
        host, number = assembly.host, int(assembly.numbers[index])
        if host is None or index > assembly.error_row:
            return
        if number == PADDING_ROW:
            host.clear(index)
            return
        row = host.row(index)
        host.fill(index, number)
        verified = self.options.verified
        verify = self.options.verify and (verified is None or not verified[number])
        try:
            nbytes = reader.read(number, self.options.epoch, row, verify=verify)
        except DamageError as error:
            if not self.options.skip_damage:
                raise
            host.clear(index, row=row)
            assembly.damage[index] = _without_frames(error)
            return
        if verified is not None:
            verified[number] = True
        with assembly.lock:
            assembly.nbytes += nbytes

    def _complete(self, assembly: Assembly) -> None:
        try:
            self._hand_over(assembly)
        except BaseException as error:  # noqa: BLE001 - as above
            assembly.fail(error, 0)
        assembly.done.put(None)

    def _hand_over(self, assembly: Assembly) -> None:
        host, assembly.host = assembly.host, None
        if host is None or assembly.error is not None:
            return
        assembly.lists = host.lists
        if self.side is None:
            assembly.batch = host.finish()
            return
        sent = self.ring.sent if self.ring else None
        assembly.batch, assembly.event = self.side.send(host.tensors, host.finish_on_device, sent)

    def stop(self, threads: list[ReaderThread]) -> None:
        """End the threads and wait for them. Safe to call twice, from any thread, and at exit."""
        self.stopped = True
        if self.ring:
            self.ring.close()
        for _ in threads:
            self.tasks.put(None)
        # The garbage collector may end an iteration within a reader, of it or another: that must not wait for itself,
        # nor for readers that wait for a lock which it holds.
        if not isinstance(threading.current_thread(), ReaderThread):
            for thread in threads:
                # Ctrl-C may come between the starts. One that is not up yet finds `stopped` and ends by itself.
                if thread.is_alive():
                    thread.join()
            self._forget()

    def _forget(self) -> None:
        try:
            while True:  # until it is empty: another thread may close too
                self.tasks.get_nowait()
        except self._no_task:
            pass
        if self.ring:
            self.ring.drain()
