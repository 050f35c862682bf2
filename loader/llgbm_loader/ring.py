"""Buffers that are used again, and only when nobody holds a tensor on them any more.

A fresh buffer of 84 MB costs three times its copy in page faults, so buffers are kept. Each use of one is a new
numpy view of its memory; torch storages made of the view keep it alive, through every slice, reshape, numpy array
and autograd graph, and its death says that the memory is free.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

#: A page: reads into memory of lesser alignment take three times as long.
_ALIGNMENT: Final = 4096

Buffer = NDArray[np.uint8]


class Stopped(Exception):  # noqa: N818 - not an error: how a waiting reader thread learns that it is to end
    """The iteration that wanted a buffer has ended."""


class Use(weakref.ref[Buffer]):
    """One use of a buffer, dead once nobody holds a tensor on it.

    It carries the buffer, so that a function in C can be its callback: Ctrl-C inside a callback in Python would be
    swallowed, and the buffer lost.
    """

    __slots__ = ("buffer",)
    buffer: Buffer


class BufferPool:
    """Memory of buffers of one size that iterations have left behind; it outlives them.

    Args:
        nbytes: Size of a buffer.
        capacity: Most buffers kept.
        pinned: Page-locked memory, for copies to an accelerator.
    """

    def __init__(self, nbytes: int, *, capacity: int, pinned: bool) -> None:
        self._nbytes = nbytes
        self._pinned = pinned
        self._left: deque[Use] = deque(maxlen=capacity)

    def get(self) -> Buffer:
        """A buffer, fresh only if there is none to use again."""
        for _ in range(len(self._left)):
            try:
                use = self._left.pop()
            except IndexError:
                break
            if use() is None:
                return use.buffer
            self._left.appendleft(use)
        return self._allocate()

    def put(self, use: Use) -> None:
        """Leave a buffer, which somebody may still hold; beyond the capacity, memory goes with its last holder."""
        self._left.append(use)

    def close(self) -> None:
        """Free the memory, now and whatever is left later."""
        self._left = deque(maxlen=0)

    def _allocate(self) -> Buffer:
        memory = torch.empty(self._nbytes + _ALIGNMENT, dtype=torch.uint8, pin_memory=self._pinned)
        start = -memory.data_ptr() % _ALIGNMENT
        buffer: Buffer = memory.numpy()[start : start + self._nbytes]
        return buffer


class Ring:
    """The buffers of one iteration. Any thread may take one; letting go of its tensors gives it back.

    Args:
        pool: Where memory comes from and goes to.
        ahead: Buffers the iteration needs besides those its consumer holds.
        reclaim: Lets go of buffers whose copy to a device has passed, waiting for one when there is none; says
            whether it let go of any.
    """

    def __init__(self, pool: BufferPool, ahead: int, reclaim: Callable[[], bool] | None = None) -> None:
        self._pool = pool
        self._ahead = ahead
        self._reclaim = reclaim
        self._lock = threading.Lock()
        self._allowed = ahead + 1
        self._total = 0
        self._closed = False
        # SimpleQueue.put is reentrant: the garbage collector may give a buffer back at any moment. None wakes up.
        self._free: queue.SimpleQueue[Use | None] = queue.SimpleQueue()
        # All buffers of the iteration, used or free. By id: the hash of a reference is that of what it refers to.
        self._uses: dict[int, Use] = {}

    def take(self) -> Buffer:
        """A view on a buffer that nobody else uses; waits until there is one.

        Raises:
            Stopped: The ring was closed.
        """
        use = self._free_now()
        while not self._closed:
            if use is not None:
                del self._uses[id(use)]
                return self._use(use.buffer)
            if self._may_grow():
                return self._use(self._pool.get())
            if self._reclaim is None or not self._reclaim():
                use = self._free.get()
            if use is None:
                use = self._free_now()
        self._free.put(None)  # the wake-up meant for another thread may have been taken here
        raise Stopped

    def allow(self, held: int) -> None:
        """Set how many batches the consumer holds: it may keep as many as it likes, and is given fresh memory then."""
        with self._lock:
            self._allowed = self._ahead + max(held, 1)
            surplus = self._total - self._allowed
        for _ in range(surplus):
            if (use := self._free_now()) is None:
                break
            del self._uses[id(use)]
            with self._lock:
                self._total -= 1
        self._free.put(None)

    def close(self, waiting: int) -> None:
        """End the iteration: wake up to ``waiting`` threads."""
        self._closed = True
        for _ in range(waiting):
            self._free.put(None)

    def drain(self) -> None:
        """Leave the memory to the pool, when no thread takes any more; what is free last, so that it is kept."""
        for use in sorted(self._uses.values(), key=lambda use: use() is None):
            view = use()
            self._pool.put(use if view is None else _watch(view, use.buffer))
        self._uses.clear()

    def _use(self, buffer: Buffer) -> Buffer:
        view = buffer[:]
        use = _watch(view, buffer, self._free.put)
        self._uses[id(use)] = use
        return view

    def _free_now(self) -> Use | None:
        while True:
            try:
                use = self._free.get_nowait()
            except queue.Empty:
                return None
            if use is not None:
                return use

    def _may_grow(self) -> bool:
        with self._lock:
            grows = self._total < self._allowed
            self._total += grows
            return grows


def _watch(view: Buffer, buffer: Buffer, callback: Callable[[Any], None] | None = None) -> Use:
    use = Use(view, callback)
    use.buffer = buffer
    return use
