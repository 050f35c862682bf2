"""Threads stepped from one queue operation to the next, in every order or in drawn ones.

Only one thread runs at a time, and only the schedule says which: so a schedule that hangs hangs each time. A wait that
nothing can end is seen at once, without a watchdog.
"""

from __future__ import annotations

import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

#: Steps of one schedule at most: more is a busy loop.
_MOST_STEPS = 5000


class BusyLoop(AssertionError):
    """A schedule that does not end."""


class Stepper:
    """Runs threads one at a time. ``choose(runnable, last)`` says which thread goes on, by its place in the list."""

    def __init__(self, choose: Callable[[list[int], int | None], int]) -> None:
        self._choose = choose
        self._turn = threading.Condition()
        self._waiting: dict[int, tuple[threading.Semaphore, Callable[[], bool]]] = {}
        self._number: dict[threading.Thread, int] = {}
        self._running = 0
        self.free_run = False

    def adopt(self, thread: threading.Thread) -> None:
        """Make a thread a stepped one, before it starts."""
        with self._turn:
            self._number[thread] = len(self._number)
            self._running += 1

    def ended(self) -> None:
        """The calling thread is at its end."""
        with self._turn:
            if self._number.pop(threading.current_thread(), None) is not None:
                self._running -= 1
                self._turn.notify_all()

    def gate(self, enabled: Callable[[], bool] = lambda: True) -> None:
        """Wait for the calling thread's turn, which comes only while ``enabled()``."""
        thread = threading.current_thread()
        if self.free_run or thread not in self._number:
            return
        go = threading.Semaphore(0)
        with self._turn:
            self._waiting[self._number[thread]] = (go, enabled)
            self._running -= 1
            self._turn.notify_all()
        go.acquire()

    def run(self) -> list[int]:
        """Step until no thread can go on; returns the numbers of those that wait in vain."""
        last: int | None = None
        for _ in range(_MOST_STEPS):
            with self._turn:
                assert self._turn.wait_for(lambda: self._running == 0, timeout=60), (
                    "a thread waits outside a gate"
                )
                runnable = sorted(number for number, (_, enabled) in self._waiting.items() if enabled())
                if not runnable:
                    return sorted(self._waiting)
                last = runnable[self._choose(runnable, last)]
                self._running += 1
                self._waiting.pop(last)[0].release()
        raise BusyLoop(f"no end after {_MOST_STEPS} steps")

    def let_go(self) -> None:
        """Open all gates for good."""
        with self._turn:
            self.free_run = True
            self._running += len(self._waiting)
            for go, _ in self._waiting.values():
                go.release()
            self._waiting.clear()

    @property
    def queues(self) -> Any:
        """A stand-in for the module ``queue``, whose operations are gates."""
        return SimpleNamespace(SimpleQueue=lambda: SteppedQueue(self), Empty=queue.Empty)


class SteppedQueue:
    """``queue.SimpleQueue`` with a gate before each operation."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._items: deque[Any] = deque()
        self._real: queue.SimpleQueue[None] = queue.SimpleQueue()  # for the end, when gates are open

    def put(self, item: Any) -> None:
        self._stepper.gate()
        self._items.append(item)
        self._real.put(None)

    def get(self) -> Any:
        self._stepper.gate(lambda: bool(self._items))
        self._real.get(timeout=60)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        self._stepper.gate()
        self._real.get_nowait()
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


class SteppedLock:
    """``threading.Lock`` with a gate before it is taken."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._stepper.gate(lambda: not self._lock.locked())
        self._lock.acquire(timeout=60)

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class _Replay:
    """A chooser that makes given choices first, then stays with the thread that runs; and notes what it had."""

    def __init__(self, prefix: list[int], most_switches: int) -> None:
        self._prefix, self._switches_left = prefix, most_switches
        self.steps: list[tuple[int, int]] = []  # which was chosen, of how many

    def __call__(self, runnable: list[int], last: int | None) -> int:
        # The thread that ran comes first, so that choice 0 is no switch.
        order = sorted(range(len(runnable)), key=lambda at: (runnable[at] != last, at))
        at_home = last in runnable
        options = 1 if at_home and not self._switches_left else len(order)
        choice = self._prefix[len(self.steps)] if len(self.steps) < len(self._prefix) else 0
        self.steps.append((choice, options))
        self._switches_left -= at_home and choice > 0
        return order[choice]


def every_schedule(most_switches: int) -> Iterator[_Replay]:
    """A chooser for each schedule there is with at most this many switches away from a thread that could go on."""
    prefix: list[int] = []
    while True:
        replay = _Replay(prefix, most_switches)
        yield replay
        steps = replay.steps
        while steps and steps[-1][0] + 1 >= steps[-1][1]:
            steps.pop()
        if not steps:
            return
        prefix = [*(choice for choice, _ in steps[:-1]), steps[-1][0] + 1]


def by_priority(seed: int, changes: int = 4, steps: int = 150) -> Callable[[list[int], int | None], int]:
    """A chooser that lets the first of a drawn order go on, and a few times puts the one that ran last of all.

    So a thread may sleep through many steps of the others, which draws at each step would hardly ever give.
    """
    generator = random.Random(seed)
    rank: dict[int, float] = {}
    change_at = set(generator.sample(range(steps), changes))
    count = 0

    def choose(runnable: list[int], last: int | None) -> int:
        nonlocal count
        for number in runnable:
            rank.setdefault(number, generator.random())
        if count in change_at and last is not None:
            rank[last] = 1 + count
        count += 1
        return min(range(len(runnable)), key=lambda at: rank[runnable[at]])

    return choose
