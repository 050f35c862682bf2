"""Paths and indices of datasets of any length that go round a few checkpoints: only one round is kept."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K")
V = TypeVar("V")


class Cycle:
    """Items that go round some paths.

    Args:
        paths: Paths, None for an item without one.
        count: Items; no fewer than in one round.
        places: Which path each item of a round has, in an order in which each first comes after those before it; each
            of them once by default.
    """

    def __init__(
        self, paths: Sequence[str | None], count: int, places: NDArray[np.intp] | None = None
    ) -> None:
        self.paths, self.count = paths, count
        self.places = np.arange(len(paths), dtype=np.intp) if places is None else places

    @property
    def period(self) -> int:
        """Items of one round."""
        return len(self.places)

    def path(self, number: int) -> str | None:
        """The path of an item."""
        return self.paths[int(self.places[number % self.period])]

    def chosen(self, choose: Callable[[str | None], bool]) -> NDArray[np.intp]:
        """Items of one round whose path is chosen, in order; each path is asked for once."""
        answers = [choose(path) for path in self.paths]
        return np.flatnonzero(np.array(answers, bool)[self.places])

    def first(self) -> list[int]:
        """The item that has each of the paths first."""
        return [int(at) for at in _first(self.places, len(self.paths))]

    def take(self, numbers: NDArray[np.intp], count: int) -> Cycle:
        """Items that go round some of one round of these."""
        places = self.places[numbers]
        first = _first(places, len(self.paths))
        used = np.flatnonzero(first >= 0)
        used = used[np.argsort(first[used])]
        rank = np.zeros(len(self.paths), np.intp)
        rank[used] = np.arange(len(used))
        return Cycle([self.paths[at] for at in used.tolist()], count, rank[places])

    def along(self, numbers: range) -> Cycle:
        """The items of a range of them."""
        period = self.period // math.gcd(self.period, numbers.step)
        steps = np.arange(min(period, len(numbers)), dtype=np.intp)
        return self.take((numbers.start + numbers.step * steps) % self.period, len(numbers))


class ItemPaths:
    """The path of each item of a dataset, None for an item without one.

    Args:
        cycles: What its parts go round, in their order.
    """

    def __init__(self, cycles: Sequence[Cycle]) -> None:
        self.cycles = [cycle for cycle in cycles if cycle.count]
        self._ends = list(accumulate(cycle.count for cycle in self.cycles))

    @classmethod
    def one_each(cls, paths: Sequence[str | None]) -> ItemPaths:
        """Paths that are given for every item."""
        return cls([Cycle(paths, len(paths))])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, idx: SupportsIndex) -> str | None:
        place = range(len(self))[operator.index(idx)]
        at = bisect_right(self._ends, place)
        cycle = self.cycles[at]
        return cycle.path(place - (self._ends[at] - cycle.count))

    def part(self, indices: Any) -> ItemPaths:
        """The paths of some of the items, as torch's ``Subset`` takes them; no list is made of a range.

        Raises:
            IndexError: There are fewer items.
        """
        if isinstance(indices, range):
            ends = [] if not indices else [operator.index(end) for end in sorted((indices[0], indices[-1]))]
            for end in ends:
                self[end]
            if not ends or ends[0] >= 0:
                return ItemPaths(self._along(indices))
        numbers = _whole_numbers(indices)
        for end in (numbers.min(), numbers.max()) if len(numbers) else ():
            self[end]
        return ItemPaths([self._round_of_all(numbers)])

    def distinct(self) -> list[str]:
        """The paths, each once, in the order in which they first come."""
        return list(dict.fromkeys(path for cycle in self.cycles for path in cycle.paths if path))

    def first_round(self) -> Iterator[tuple[int, str | None]]:
        """Index and path of the items of each part that are no repetitions."""
        for cycle, end in zip(self.cycles, self._ends, strict=True):
            yield from (
                (end - cycle.count + at, path) for at, path in zip(cycle.first(), cycle.paths, strict=True)
            )

    def _along(self, numbers: range) -> list[Cycle]:
        forward = numbers if numbers.step > 0 else numbers[::-1]
        parts: list[Cycle] = []
        for cycle, end in zip(self.cycles, self._ends, strict=True):
            begin = end - cycle.count
            inside = forward[bisect_left(forward, begin) : bisect_left(forward, end)]
            inside = range(inside.start - begin, inside.stop - begin, inside.step)
            parts.append(cycle.along(inside if numbers is forward else inside[::-1]))
        return parts if numbers is forward else parts[::-1]

    def _round_of_all(self, numbers: NDArray[np.intp]) -> Cycle:
        """One round that is the items of any numbers."""
        paths = [path for cycle in self.cycles for path in cycle.paths]
        periods = np.array([cycle.period for cycle in self.cycles], np.intp)
        sizes = accumulate((len(cycle.paths) for cycle in self.cycles), initial=0)
        rounds = [size + cycle.places for cycle, size in zip(self.cycles, sizes, strict=False)]
        places = np.concatenate([*rounds, np.zeros(0, np.intp)])
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        ends = np.array(self._ends, np.intp)
        at = np.searchsorted(ends, numbers, "right")
        begins = ends - np.array([cycle.count for cycle in self.cycles], np.intp)
        inside = (numbers - begins[at]) % periods[at] + (np.cumsum(periods) - periods)[at]
        return Cycle(paths, len(numbers), places).take(inside, len(numbers))


class ChosenIndices(Sequence[int]):
    """Indices of the items whose path is chosen, in order; equal to a list of the same.

    Args:
        paths: The paths.
        choose: Tells it of a path; each is asked for at most once for each part.
    """

    def __init__(self, paths: ItemPaths, choose: Callable[[str | None], bool]) -> None:
        self._cycles = paths.cycles
        self._places = [cycle.chosen(choose) for cycle in self._cycles]
        self._starts = list(accumulate((cycle.count for cycle in self._cycles), initial=0))
        self._counts = list(map(_count, self._cycles, self._places))
        self._ends = list(accumulate(self._counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, idx: int) -> int: ...
    @overload
    def __getitem__(self, idx: slice) -> list[int]: ...
    def __getitem__(self, idx: int | slice) -> int | list[int]:
        if isinstance(idx, slice):
            return [self[at] for at in range(len(self))[idx]]
        number = range(len(self))[operator.index(idx)]
        at = bisect_right(self._ends, number)
        places = self._places[at]
        turn, place = divmod(number - (self._ends[at] - self._counts[at]), len(places))
        return self._starts[at] + turn * self._cycles[at].period + int(places[place])

    @cached_property
    def paths(self) -> ItemPaths:
        """The path of each of them."""
        return ItemPaths(list(map(Cycle.take, self._cycles, self._places, self._counts)))

    def __contains__(self, idx: object) -> bool:
        if not isinstance(idx, (int, np.integer)):
            return False
        at = bisect_left(self, int(idx))
        return at < len(self) and self[at] == idx

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self[:5]))
        return f"[{shown}{', ...' if len(self) > 5 else ''}]"


class LazyMap(Mapping[K, V]):
    """A map whose values are read when they are looked up, each time anew.

    Args:
        keys: Its keys, in order.
        read: Reads the value of one of them.
    """

    def __init__(self, keys: Collection[K], read: Callable[[K], V]) -> None:
        self._keys, self._read = keys, read

    def __getitem__(self, key: K) -> V:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys  # Mapping's own would read the value

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _count(cycle: Cycle, chosen: NDArray[np.intp]) -> int:
    """How many items of a cycle are at the chosen places of its round."""
    rounds, rest = divmod(cycle.count, cycle.period)
    return rounds * len(chosen) + bisect_left(chosen, rest)


def _first(places: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Where each number below ``size`` first comes; -1 where it does not."""
    first = np.full(size, -1, np.intp)
    first[places[::-1]] = np.arange(len(places) - 1, -1, -1)  # of many for one, the last counts
    return first


def _whole_numbers(indices: Any) -> NDArray[np.intp]:
    numbers = np.asarray(indices)
    if numbers.ndim == 1 and numbers.dtype.kind in "iu":
        return numbers.astype(np.intp, copy=False)
    return np.array([operator.index(idx) for idx in indices], np.intp)
