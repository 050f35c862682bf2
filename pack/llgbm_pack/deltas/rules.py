"""Which checkpoints each delta of a cache belongs to, by the first rule that gives it any (see :mod:`llgbm_pack.deltas.join`).

Each delta is judged by its own path and name, whatever other deltas were given to the same checkpoint: so two deltas
for one checkpoint both come out, and none is taken because another rule looked first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, TypeVar

from llgbm_pack.deltas.paths import Parts, ZooPlace, is_generic, split_path, unwrap

_ENOUGH: Final = 2

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Deltas that one rule gives to the same checkpoints, by index."""

    rule: str  # ``exact``, ``relative``, ``tail`` or ``name``
    entries: Sequence[int]  # the deltas, ascending
    owners: Sequence[int]  # the checkpoints; more than one share the deltas, and none can have them
    height: int = 0  # components of the shared tail; 0 of other rules
    says: str = ""  # what the path of a delta says against its name, or empty


class Rules:
    """The checkpoints of a zoo and the paths and names of a cache, ready to be compared.

    Args:
        checkpoints: POSIX paths relative to the zoo, each once.
        zoo_root: The zoo.
        paths: Recorded path of each delta, rewritten by the user's maps.
        names: Name of each delta, or empty.
    """

    def __init__(
        self, checkpoints: Sequence[str], zoo_root: str, paths: Sequence[Parts], names: Sequence[str]
    ) -> None:
        self._checkpoints, self._names = checkpoints, names
        self.relative = [split_path(path) for path in checkpoints]
        place = ZooPlace(zoo_root, self.relative)
        self._whole = [place.full(parts) for parts in self.relative]
        self._paths = [place.resolve(path) for path in paths]
        self.full = [unwrap(parts) for parts in self._whole]
        self.tails = [unwrap(path) for path in self._paths]
        self._by_last = _group(range(len(checkpoints)), lambda c: self.full[c][-1:])
        self._by_path = {path: c for c, path in enumerate(checkpoints)}
        # What stands at each height above the end of the paths: the evidence against a renamed folder.
        self._zoo_heights = _heights(self.full)
        self._cache_heights = _heights(self.tails)

    def claims(self) -> Iterator[Claim]:
        """Each delta in the claim of the first rule that gives it to any checkpoint; no claim holds the others."""
        free = dict.fromkeys(range(len(self._paths)))
        for claim in self._by_each_rule(free):
            for e in claim.entries:
                free.pop(e)
            yield from self._heard_by_name(claim)

    def shared(self, c: int, claim: Claim) -> Parts:
        """What a tail or a name has in common with the path of a checkpoint; nothing of other rules."""
        if claim.rule == "name":
            return split_path(self._names[claim.entries[0]])
        return self.full[c][-claim.height :] if claim.height else ()

    def is_lone(self, c: int, claim: Claim) -> bool:
        """Whether a shared tail names one thing at most, and is neither side's whole path nor that of a moved zoo."""
        height, whole = claim.height, len(unwrap(self.relative[c]))
        if height == 0 or height >= whole > 1:
            return False
        differ = height < min(len(self.full[c]), len(self.tails[claim.entries[0]]))
        return differ and sum(not is_generic(part) for part in self.shared(c, claim)) <= 1

    def _by_each_rule(self, free: dict[int, None]) -> Iterator[Claim]:
        """One rule after another; the caller takes what was claimed out of ``free``."""
        yield from self._equal("exact", self._whole, free)
        yield from self._equal("relative", self.relative, free)
        heights = (max((len(parts) for parts in side), default=0) for side in (self.full, self.tails))
        for height in range(min(heights), 0, -1):
            yield from self._by_tail(height, free)
        for e in list(free):
            if owners := [c for c in self._by_name(e) if self._agree(c, e)]:
                yield Claim(rule="name", entries=[e], owners=owners)

    def _equal(self, rule: str, wanted: Sequence[Parts], free: Iterable[int]) -> list[Claim]:
        owner = {parts: c for c, parts in enumerate(wanted)}
        owned = [e for e in free if self._paths[e] in owner]
        return [Claim(rule=rule, entries=[e], owners=[owner[self._paths[e]]]) for e in owned]

    def _by_tail(self, height: int, free: Iterable[int]) -> Iterator[Claim]:
        deep = [e for e in free if len(self.tails[e]) >= height]
        if not deep:
            return
        offers = _group(deep, lambda e: (self.tails[e][-height:], self._offer(e, height)))
        high = [c for c in range(len(self.full)) if len(self.full[c]) >= height]
        asked = _group(high, lambda c: self.full[c][-height:])
        # Shared by all deltas of one tail and one offer, or many of them would be compared with as many checkpoints.
        for (tail, offer), entries in offers.items():
            owners = [c for c in asked.get(tail, ()) if self._ask(c, height) + offer >= _ENOUGH]
            if owners:
                yield Claim(rule="tail", entries=entries, owners=owners, height=height)

    def _ask(self, c: int, height: int) -> int:
        """How much a checkpoint speaks for a tail of this height: 2 alone is enough, 1 wants 1 of the delta."""
        path = self.full[c]
        if len(path) == height:
            return 2
        whole = len(unwrap(self.relative[c]))
        covers, generic = height >= max(whole, 1), all(map(is_generic, path[-height:]))
        if covers and whole > 1 and not generic:
            return 2
        known = path[-height - 1] in self._cache_heights[height]
        return int(not known and (covers or not generic))

    def _offer(self, e: int, height: int) -> int:
        """How much a delta speaks for it: 2 when its path ends there, 1 when no checkpoint has its folder."""
        path = self.tails[e]
        if len(path) == height:
            return 2
        return int(path[-height - 1] not in self._zoo_heights[height])

    def _by_name(self, e: int) -> list[int]:
        """The checkpoint of this relative path, and the only one of this last component."""
        name = self._names[e]
        if not name:
            return []
        last = self._by_last.get((name,), [])
        whole = [self._by_path[name]] if name in self._by_path else []
        return list(dict.fromkeys([*whole, *(last if len(last) == 1 else ())]))

    def _agree(self, c: int, e: int) -> bool:
        """Whether the paths of a pair of equal names do not speak against it."""
        pairs = zip(reversed(self.full[c]), reversed(self.tails[e]), strict=False)
        height = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return height == 0 or self._ask(c, height) + self._offer(e, height) >= _ENOUGH

    def _heard_by_name(self, claim: Claim) -> Iterator[Claim]:
        """The claim; of a delta whose path is one checkpoint's and whose name is another's, one for them all."""
        if len(claim.owners) > 1:
            yield claim
            return
        (owner,) = claim.owners
        agreeing = []
        for e in claim.entries:
            named = self._meant(e)
            if not named or owner in named:
                agreeing.append(e)
                continue
            says = f"its path is {self._checkpoints[owner]}'s, its name {self._checkpoints[named[0]]}'s"
            yield Claim(rule=claim.rule, entries=[e], owners=[owner, *named], says=says)
        if agreeing:
            yield Claim(rule=claim.rule, entries=agreeing, owners=claim.owners, height=claim.height)

    def _meant(self, e: int) -> list[int]:
        """All checkpoints that a name may mean; a number counts entries and means none."""
        name = self._names[e]
        if not any(map(str.isalpha, name)):
            return []
        return list(dict.fromkeys([*self._by_name(e), *self._by_last.get((name,), [])]))


def _heights(paths: Iterable[Parts]) -> dict[int, set[str]]:
    heights: dict[int, set[str]] = defaultdict(set)
    for parts in paths:
        for height, part in enumerate(reversed(parts)):
            heights[height].add(part)
    return heights


def _group(indices: Iterable[int], key: Callable[[int], K]) -> dict[K, list[int]]:
    groups: dict[K, list[int]] = {}
    for index in indices:
        groups.setdefault(key(index), []).append(index)
    return groups
