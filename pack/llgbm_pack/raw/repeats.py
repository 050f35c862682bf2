"""Paths and indices of datasets of any length that go round a few checkpoints: only one round is kept."""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import SupportsIndex, TypeVar, overload

import numpy as np

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Cycle:
    """Items that go round a list of paths: item ``i`` is of ``paths[i % len(paths)]``.

    Attributes:
        paths: Paths of one round, None for an item without one; no more than there are items.
        count: Items.
    """

    paths: Sequence[str | None]
    count: int


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
        return cycle.paths[(place - (self._ends[at] - cycle.count)) % len(cycle.paths)]

    def distinct(self) -> list[str]:
        """The paths, each once, in the order in which they first come."""
        return list(dict.fromkeys(path for cycle in self.cycles for path in cycle.paths if path))

    def first_round(self) -> Iterator[tuple[int, str | None]]:
        """Index and path of the items of the first round of each part: all that are not repetitions."""
        for cycle, end in zip(self.cycles, self._ends, strict=True):
            yield from enumerate(cycle.paths, end - cycle.count)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The chosen places of a round, in order, and where its items start."""

    places: Sequence[int]
    start: int
    period: int


class ChosenIndices(Sequence[int]):
    """Indices of the items whose path is chosen, in order; equal to a list of the same.

    Args:
        paths: The paths.
        choose: Tells it of a path; asked once for each item of a round.
    """

    def __init__(self, paths: ItemPaths, choose: Callable[[str | None], bool]) -> None:
        self._rounds: list[_Chosen] = []
        self._ends: list[int] = []
        start = chosen = 0
        for cycle in paths.cycles:
            places = [place for place, path in enumerate(cycle.paths) if choose(path)]
            rounds, rest = divmod(cycle.count, len(cycle.paths))
            chosen += rounds * len(places) + bisect_left(places, rest)
            self._rounds.append(_Chosen(places, start, len(cycle.paths)))
            self._ends.append(chosen)
            start += cycle.count

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
        part = self._rounds[at]
        turn, place = divmod(number - (self._ends[at - 1] if at else 0), len(part.places))
        return part.start + turn * part.period + part.places[place]

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
