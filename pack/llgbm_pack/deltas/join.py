"""Join checkpoints with deltas by whole path components; a wrong join is worse than none.

The rules, in this order; what one rule joined is out of the way of the next:

1. ``exact``: the path the cache recorded (after ``--map``) is the checkpoint's path: as the zoo was given, absolute, or
   with links followed, so that how the zoo is spelled decides nothing.
2. ``relative``: it is the checkpoint's path relative to the zoo.
3. ``tail``: the longest tail of whole components that the two paths share. Longer tails join first. A tail joins when
   it belongs to one open checkpoint and one open delta; with more on either side all of them are ambiguous.
4. ``name``: the cache's name of the adapter (second form) is the checkpoint's last component, or its whole relative
   path, and belongs to one checkpoint of the zoo.

A closing ``adapter`` folder counts for neither side in 3 and 4: ``zoo/x/adapter`` and ``zoo/x`` are the same adapter.

Where a shared tail ends, two folders disagree. They may be one folder renamed or moved, or two folders that happen to
hold adapters of equal names. A tail is therefore refused (the pair stays apart) when

* the tail names no adapter in particular (``seed_0``, ``run3/checkpoint-300``: only numbers and common words) and
  does not cover the checkpoint's whole path in the zoo;
* the cache knows the checkpoint's folder at that height, or the zoo knows the delta's: then neither was renamed
  (``task1/x`` is not ``task2/x`` when the cache holds ``task2/y``). A tail of two or more components that covers the
  whole path in the zoo and names an adapter is exempt: the zoo was moved.

So a renamed task joins by tail when its adapters' names are unique, and ``--map OLD=NEW`` joins the rest.

What no rule joined is looked at once more, as if all checkpoints were still open: a delta that a later rule gives to a
checkpoint that has one already is a second candidate, and the checkpoint is ambiguous. A delta whose name means one
checkpoint and whose path means another contradicts itself.
"""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.deltas.paths import Parts, is_generic, parts_of, real_folder, rewrite, unwrap

_LISTED: Final = 16
_ENOUGH: Final = 2


@dataclass(frozen=True, slots=True)
class Match:
    """A joined delta.

    Attributes:
        entry: The delta.
        matched_by: ``exact``, ``relative``, ``tail`` or ``name``.
    """

    entry: DeltaEntry
    matched_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ambiguity:
    """A checkpoint with more than one delta that could be its own, or with one that could be another's.

    Attributes:
        path: The checkpoint.
        entries: The deltas in question, at most 16 of them; what the first rule gives comes first.
        matched_by: The rule that gives it.
        shared: Other checkpoints claim them too.
    """

    path: str
    entries: tuple[DeltaEntry, ...]
    matched_by: str
    shared: bool


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A delta whose name means one checkpoint and whose path means another."""

    entry: DeltaEntry
    by_name: str
    by_path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinResult:
    """What was joined with what, and what was not.

    Attributes:
        matches: The delta of each joined checkpoint, by relative path.
        missing: Checkpoints without a delta, in the order given.
        ambiguous: Checkpoints that claim, or share a claim on, more than one delta or a delta others claim too.
        contradictions: Deltas that speak against themselves; they are in ``matches`` all the same.
        distant: Checkpoints joined by their last component only, whose folder is another than the delta's.
    """

    matches: dict[str, Match]
    missing: list[str]
    ambiguous: list[Ambiguity]
    contradictions: list[Contradiction]
    distant: list[str]


def join_deltas(
    checkpoints: Sequence[str],
    *,
    zoo_root: str | os.PathLike[str],
    entries: Sequence[DeltaEntry],
    maps: Sequence[tuple[str, str]] = (),
) -> JoinResult:
    """Find the delta of each checkpoint.

    Args:
        checkpoints: POSIX paths relative to the zoo, each once; ``.`` is the zoo itself.
        zoo_root: The zoo as the user gave it.
        entries: The cache's entries.
        maps: (old, new) prefixes to rewrite in the cache's paths, whole components only; the first that fits is taken.
    """
    return _Join(checkpoints, os.fspath(zoo_root), entries, maps).run()


class _Join:
    """The state of one join: indices of checkpoints and entries that are still open."""

    def __init__(
        self,
        checkpoints: Sequence[str],
        root: str,
        entries: Sequence[DeltaEntry],
        maps: Sequence[tuple[str, str]],
    ) -> None:
        self._checkpoints, self._entries = checkpoints, entries
        real = os.path.realpath(root)
        self._roots = dict.fromkeys(parts_of(path) for path in (root, os.path.abspath(root), real))  # noqa: PTH100
        self._relative = [parts_of(path) for path in checkpoints]
        self._paths = [rewrite(parts_of(entry.path), maps) for entry in entries]
        self._full = [unwrap(parts_of(real) + parts) for parts in self._relative]
        self._tails = [unwrap(parts) for parts in self._paths]
        # What stands at each height above the end of the paths: the evidence against a renamed folder.
        self._zoo_heights = _heights(self._full)
        self._cache_heights = _heights(self._tails)
        self._real_folder = functools.lru_cache(maxsize=None)(real_folder)
        self._begin(range(len(entries)))

    def _begin(self, entries: Iterable[int]) -> None:
        self._open = dict.fromkeys(range(len(self._checkpoints)))
        self._free = dict.fromkeys(entries)
        self._matches: dict[int, tuple[int, str]] = {}
        self._ambiguous: dict[int, tuple[list[int], str, bool]] = {}

    def run(self) -> JoinResult:
        self._pair_paths()
        self._pair_names()
        self._add_second_candidates()
        names = self._checkpoints
        return JoinResult(
            matches={names[c]: Match(self._entries[e], by) for c, (e, by) in sorted(self._matches.items())},
            missing=[names[c] for c in self._open],
            ambiguous=[
                Ambiguity(
                    path=names[c],
                    entries=tuple(self._entries[e] for e in found[:_LISTED]),
                    matched_by=by,
                    shared=shared,
                )
                for c, (found, by, shared) in sorted(self._ambiguous.items())
            ],
            contradictions=self._contradictions(),
            distant=[
                names[c] for c, (e, by) in sorted(self._matches.items()) if by == "tail" and self._apart(c, e)
            ],
        )

    def _pair_paths(self) -> None:
        self._pair_exact()
        self._pair("relative", self._relative, self._paths)
        for height in range(self._deepest(), 0, -1):
            self._pair_tails(height)

    def _pair_exact(self) -> None:
        """By the whole path, in every spelling of the zoo at once: two spellings are two candidates."""
        owner = {root + parts: c for root in self._roots for c, parts in enumerate(self._relative)}
        found: dict[int, list[int]] = defaultdict(list)
        for e in self._free:
            c = owner.get(self._paths[e], owner.get(self._resolved(self._paths[e])))
            if c is not None:
                found[c].append(e)
        for c, of_c in found.items():
            self._settle("exact", [c], of_c)

    def _resolved(self, path: Parts) -> Parts:
        return self._real_folder(path[:-1]) + path[-1:]

    def _given(self, entries: Iterable[int], *, names: bool) -> dict[int, list[int]]:
        """The deltas among some that the rules give to one checkpoint each, were all checkpoints still open."""
        anew = copy.copy(self)
        anew._begin(entries)
        anew._pair_paths()
        if names:
            anew._pair_names()
        given = {c: [e] for c, (e, _) in anew._matches.items()}
        return given | {c: found for c, (found, _, shared) in anew._ambiguous.items() if not shared}

    def _add_second_candidates(self) -> None:
        for c, others in self._given(self._free, names=True).items():
            if c in self._matches:
                e, by = self._matches.pop(c)
                self._ambiguous[c] = ([e, *others], by, False)
                for other in others:
                    self._free.pop(other, None)

    def _contradictions(self) -> list[Contradiction]:
        by_path = {e: c for c, (e, by) in self._matches.items() if by != "name"}
        by_name = {e: [c] for c, (e, by) in self._matches.items() if by == "name"}
        for c, found in self._given(by_name, names=False).items():
            by_path.update(dict.fromkeys(found, c))
        owners = self._named()
        return [
            Contradiction(self._entries[e], self._checkpoints[named[0]], self._checkpoints[c])
            for e, c in sorted(by_path.items())
            if (named := by_name.get(e) or owners.get(self._entries[e].name, [])) and c not in named
        ]

    def _named(self) -> dict[str, list[int]]:
        """Name of an adapter -> the checkpoints it means: by their relative path, or by a last component of theirs alone."""
        last = Counter(parts[-1:] for parts in self._full)
        named: dict[str, list[int]] = defaultdict(list)
        for c, path in enumerate(self._checkpoints):
            named[path].append(c)
            if last[self._full[c][-1:]] == 1 and self._full[c][-1] != path:
                named[self._full[c][-1]].append(c)
        return named

    def _apart(self, c: int, e: int) -> bool:
        """Whether a pair shares its last component only, and both have a folder above it."""
        mine, theirs = self._full[c][-2:-1], self._tails[e][-2:-1]
        return bool(mine and theirs) and mine != theirs

    def _pair(self, by: str, wanted: Sequence[Hashable], offered: Sequence[Hashable]) -> None:
        claims = _group(self._open, lambda c: wanted[c])
        for key, found in _group(self._free, lambda e: offered[e]).items():
            self._settle(by, claims.get(key, []), found)

    def _pair_tails(self, height: int) -> None:
        deep = [c for c in self._open if len(self._full[c]) >= height]
        claims = _group(deep, lambda c: self._full[c][-height:])
        offers = _group(
            [e for e in self._free if len(self._tails[e]) >= height], lambda e: self._tails[e][-height:]
        )
        for tail in claims.keys() & offers.keys():
            claim = {c: self._claim(c, height) for c in claims[tail]}
            offer = {e: self._offer(e, height) for e in offers[tail]}
            best_claim, best_offer = max(claim.values()), max(offer.values())
            self._settle(
                "tail",
                [c for c in claim if claim[c] + best_offer >= _ENOUGH],
                [e for e in offer if offer[e] + best_claim >= _ENOUGH],
            )

    def _pair_names(self) -> None:
        """By the adapter's name, unique among all checkpoints of the zoo and all names of the cache."""
        offered: dict[int, list[int]] = defaultdict(list)
        names = _group((e for e in self._free if self._entries[e].name), lambda e: self._entries[e].name)
        for name, owners in self._named().items():
            for c in owners:
                if c in self._open:
                    offered[c] += [e for e in names.get(name, []) if self._agree(c, e)]
        for c, found in offered.items():
            self._settle("name", [c], [e for e in found if e in self._free])

    def _settle(self, by: str, claims: Sequence[int], found: Sequence[int]) -> None:
        """Join one with one; more on either side is ambiguous for all of them."""
        if not claims or not found:
            return
        if len(claims) == len(found) == 1:
            self._matches[claims[0]] = (found[0], by)
        else:
            self._ambiguous.update((c, (list(found), by, len(claims) > 1)) for c in claims)
        for c in claims:
            self._open.pop(c, None)
        for e in found:
            self._free.pop(e, None)

    def _claim(self, c: int, height: int) -> int:
        """How much a checkpoint speaks for a tail of this height: 2 alone is enough, 1 wants 1 of the delta."""
        path = self._full[c]
        if len(path) == height:
            return 2
        whole = len(unwrap(self._relative[c]))
        covers, generic = height >= max(whole, 1), all(map(is_generic, path[-height:]))
        if covers and whole > 1 and not generic:
            return 2
        known = path[-height - 1] in self._cache_heights[height]
        return int(not known and (covers or not generic))

    def _offer(self, e: int, height: int) -> int:
        """How much a delta speaks for it: 2 when its path ends there, 1 when no checkpoint has its folder."""
        path = self._tails[e]
        if len(path) == height:
            return 2
        return int(path[-height - 1] not in self._zoo_heights[height])

    def _agree(self, c: int, e: int) -> bool:
        """Whether the paths of a pair of equal names do not speak against it."""
        pairs = zip(reversed(self._full[c]), reversed(self._tails[e]), strict=False)
        height = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return height == 0 or self._claim(c, height) + self._offer(e, height) >= _ENOUGH

    def _deepest(self) -> int:
        deepest = max((len(self._full[c]) for c in self._open), default=0)
        return min(deepest, max((len(self._tails[e]) for e in self._free), default=0))


def _heights(paths: Iterable[Parts]) -> dict[int, set[str]]:
    heights: dict[int, set[str]] = defaultdict(set)
    for parts in paths:
        for height, part in enumerate(reversed(parts)):
            heights[height].add(part)
    return heights


def _group(indices: Iterable[int], key: Callable[[int], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(key(index), []).append(index)
    return groups
