"""Buffers that are used again, and only when nobody holds a tensor on them any more.

A fresh buffer of 84 MB costs three times its copy in page faults, so buffers are kept. Each use of one is a new
numpy view of its memory; torch storages made of the view keep it alive, through every slice, reshape, numpy array
and autograd graph, and its death says that the memory is free.
"""

from __future__ import annotations

import itertools
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


class BufferPool:
    """Memory of buffers of one size that no iteration is using; it outlives iterations.

    Args:
        nbytes: Size of a buffer.
        capacity: Most buffers kept unused.
        pinned: Page-locked memory, for copies to an accelerator.
    """

    def __init__(self, nbytes: int, *, capacity: int, pinned: bool) -> None:
        self._nbytes = nbytes
        self._pinned = pinned
        self._spare: deque[Buffer] = deque(maxlen=capacity)

    def get(self) -> Buffer:
        """A buffer, fresh only if there is none to use again."""
        try:
            return self._spare.pop()
        except IndexError:
            return self._allocate()

    def put(self, buffer: Buffer) -> None:
        """Give a buffer back."""
        self._spare.append(buffer)

    def clear(self) -> None:
        """Free the memory."""
        self._spare.clear()

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
        self._free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._uses: dict[int, weakref.ref[Any]] = {}

    @property
    def total(self) -> int:
        """Buffers there are, used or free."""
        return self._total

    def take(self) -> Buffer:
        """A view on a buffer that nobody else uses; waits until there is one.

        Raises:
            Stopped: The ring was closed.
        """
        buffer = self._free_now()
        while not self._closed:
            if buffer is None and self._may_grow():
                buffer = self._pool.get()
            if buffer is not None:
                return self._use(buffer)
            if self._reclaim is None or not self._reclaim():
                buffer = self._free.get()
            if buffer is None:
                buffer = self._free_now()
        if buffer is not None:
            self._pool.put(buffer)
        self._free.put(None)  # the wake-up meant for another thread may have been taken here
        raise Stopped

    def allow(self, held: int) -> None:
        """Set how many batches the consumer holds: it may keep as many as it likes, and is given fresh memory then."""
        with self._lock:
            self._allowed = self._ahead + max(held, 1)
            surplus = self._total - self._allowed
        for _ in range(surplus):
            if self._free_now() is None:
                break
            with self._lock:
                self._total -= 1
        self._free.put(None)

    def close(self, waiting: int) -> None:
        """End the iteration: wake up to ``waiting`` threads, hand unused memory to the pool."""
        self._closed = True
        for _ in range(waiting):
            self._free.put(None)

    def drain(self) -> None:
        """Hand unused memory to the pool, when no thread takes any more."""
        while (buffer := self._free_now()) is not None:
            self._pool.put(buffer)

    def _use(self, buffer: Buffer) -> Buffer:
        view = buffer[:]
        number = next(self._numbers)
        self._uses[number] = weakref.ref(view, lambda _: self._give_back(number, buffer))
        return view

    def _give_back(self, number: int, buffer: Buffer) -> None:
        self._uses.pop(number, None)
        if self._closed:
            self._pool.put(buffer)
        else:
            self._free.put(buffer)

    def _free_now(self) -> Buffer | None:
        while True:
            try:
                buffer = self._free.get_nowait()
            except queue.Empty:
                return None
            if buffer is not None:
                return buffer

    def _may_grow(self) -> bool:
        with self._lock:
            grows = self._total < self._allowed
            self._total += grows
            return grows
