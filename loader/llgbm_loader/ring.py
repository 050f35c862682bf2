"""Buffers that are used again, and only when nobody holds a tensor on them any more.

A fresh buffer of 84 MB costs three times its copy in page faults, so buffers are kept. Each use of one is a new
numpy view of its memory; torch storages made of the view keep it alive, through every slice, reshape, numpy array
and autograd graph, and its death says that the memory is free.
"""

from __future__ import annotations

import queue
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
    """Memory of buffers of one size that iterations have left behind; it outlives them."""

    def __init__(self, nbytes: int, *, capacity: int, pinned: bool) -> None:
        self._nbytes = nbytes  # of a buffer
        self._pinned = pinned  # page-locked memory, for copies to an accelerator
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
    """The buffers of one iteration. Any reader may take one; letting go of its tensors gives it back.

    Why no reader waits for ever. All there is to wait for is one queue of permits, and each item is worth one buffer:
    a ``Use`` whose memory is free, or None for memory that is not allocated yet. There is no other wake-up, so none
    can be lost:

    1. ``take`` gets one permit and makes one buffer of it, or puts it back where memory fails. A buffer becomes a
       permit again when it dies, and nothing that goes with a batch holds its buffer in a cycle: permits and buffers
       together stay ``granted``, which only the consumer changes.
    2. ``allow`` leaves ``granted >= ahead + held``. The consumer waits for one of at most ``ahead`` batches in the
       making and holds ``held`` buffers, so there is a buffer or a permit for each batch in the making.
       A surplus is withdrawn only as permits that lie in the queue.
    3. With a device, a buffer may be in a copy, and the copy's end makes no permit by itself. So whoever sends a buffer
       adds an item for it too: the event of its copy. Who gets that item waits for the copy and lets go of the buffer,
       which then dies into a permit. A buffer in a copy thus has an item in the queue, or a reader at work on it; and a
       reader that waits while the queue is empty waits for buffers that others are about to let go of without waiting.
    4. The garbage collector's callbacks are ``SimpleQueue.put`` itself, which takes no lock of ours and may come amid
       any line: the worst it does is to add a permit that the line has not seen yet, and the next ``get`` sees it.
    5. ``close`` marks the ring and adds an item. From then on whoever gets an item puts it back, so one is enough to
       end all readers, those that wait and those that come later.
    """

    def __init__(
        self, pool: BufferPool, ahead: int, reclaim: Callable[[torch.Event], None] | None = None
    ) -> None:
        self._pool = pool
        self._ahead = ahead  # buffers that are needed besides those that the consumer holds
        self._reclaim = reclaim  # waits for the event of a copy, lets go of the buffer; None for the CPU
        self._closed = False
        self._permits: queue.SimpleQueue[Use | torch.Event | None] = queue.SimpleQueue()
        # All buffers of the iteration, used or free. By id: the hash of a reference is that of what it refers to.
        self._uses: dict[int, Use] = {}
        self._granted = 0
        self.allow(0)

    def take(self) -> Buffer:
        """A view on a buffer that nobody else uses; waits until there is one, and raises Stopped in a closed ring."""
        while True:
            permit = self._permits.get()
            if self._closed:
                self._permits.put(permit)
                raise Stopped
            if permit is None:
                try:
                    return self._use(self._pool.get())
                except BaseException:
                    self._permits.put(None)
                    raise
            if isinstance(permit, Use):
                del self._uses[id(permit)]
                return self._use(permit.buffer)
            if self._reclaim is not None:
                self._reclaim(permit)

    def sent(self, copied: torch.Event) -> None:
        """Tell that a buffer is being copied to a device, until an event; any thread may."""
        self._permits.put(copied)

    def allow(self, held: int) -> None:
        """Set how many buffers the consumer holds, in its own thread; it may keep many, and is given fresh memory."""
        target = self._ahead + max(held, 1)
        for _ in range(self._granted, target):
            self._permits.put(None)
        self._granted = max(self._granted, target)
        while self._granted > target and self._withdraw():
            self._granted -= 1

    def close(self) -> None:
        """End the iteration: every reader that takes is stopped."""
        self._closed = True
        self._permits.put(None)

    def drain(self) -> None:
        """Leave the memory to the pool, when no thread takes any more; what is free last, so that it is kept."""
        left = []
        try:  # no contextlib: when the interpreter exits, what modules hold may be gone
            while True:  # one by one: should another thread close too, each goes to the pool once
                left.append(self._uses.popitem()[1])
        except KeyError:
            pass
        for use in sorted(left, key=lambda use: use() is None):
            view = use()
            self._pool.put(use if view is None else _watch(view, use.buffer))

    def _withdraw(self) -> bool:
        """Take a permit away for good, with its memory; says whether there was one to take."""
        try:
            permit = self._permits.get_nowait()
        except queue.Empty:
            return False
        if self._closed or not (permit is None or isinstance(permit, Use)):
            self._permits.put(permit)
            return False
        if permit is not None:
            self._uses.pop(id(permit), None)  # another thread may close and drain just now
        return True

    def _use(self, buffer: Buffer) -> Buffer:
        view = buffer[:]
        use = _watch(view, buffer, self._permits.put)
        self._uses[id(use)] = use
        return view


class Held:
    """Counts the buffers that the consumer was given and somebody still holds. For the consumer's thread."""

    def __init__(self) -> None:
        self._alive: dict[int, weakref.ref[Buffer]] = {}
        self._dead: queue.SimpleQueue[weakref.ref[Buffer]] = queue.SimpleQueue()

    def add(self, buffer: Buffer) -> None:
        """Count a buffer until its death."""
        ref = weakref.ref(buffer, self._dead.put)
        self._alive[id(ref)] = ref

    def count(self) -> int:
        """How many are held now. Looks at the dead only: a consumer may keep all batches of an epoch."""
        while not self._dead.empty():
            del self._alive[id(self._dead.get_nowait())]
        return len(self._alive)


def _watch(view: Buffer, buffer: Buffer, callback: Callable[[Any], None] | None = None) -> Use:
    use = Use(view, callback)
    use.buffer = buffer
    return use
