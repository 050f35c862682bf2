"""Join checkpoints with deltas by whole path components; a wrong join is worse than none.

The rules, in this order; what one rule joined is out of the way of the next:

1. ``exact``: the path the cache recorded (after ``--map``) is the checkpoint's path, as given or absolute.
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
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from llgbm_pack.delta_manifest import DeltaEntry

Parts = tuple[str, ...]

_WEIGHT_FILES: Final = frozenset({"adapter_model.safetensors", "adapter_config.json"})
_WEIGHTS_SUFFIX: Final = ".safetensors"
_WRAPPER: Final = "adapter"
_LISTED: Final = 16
_ENOUGH: Final = 2
#: Words that many adapters of a zoo are called by.
_GENERIC: Final = frozenset(
    re.findall(
        r"\w+",
        """
        adapter adapters base best checkpoint checkpoints ckpt default e ep epoch exp experiment
        final fold global init iter it iteration last latest lora lr m model models out output
        outputs peft r rank rep results run s sd seed stage step steps train trial v version
        weights
        """,
    )
)


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
class JoinResult:
    """What was joined with what, and what was not.

    Attributes:
        matches: The delta of each joined checkpoint, by relative path.
        missing: Checkpoints without a delta, in the order given.
        ambiguous: Checkpoints that claim, or share a claim on, more than one delta or a delta others claim too; with
            the deltas in question, at most 16 of them.
        unused: Deltas of no checkpoint, in the order given.
    """

    matches: dict[str, Match]
    missing: list[str]
    ambiguous: list[tuple[str, list[DeltaEntry]]]
    unused: list[DeltaEntry]


def join_deltas(
    checkpoints: Sequence[str],
    *,
    zoo_root: str | os.PathLike[str],
    entries: Sequence[DeltaEntry],
    maps: Sequence[tuple[str, str]] = (),
    absolute_root: str = "",
) -> JoinResult:
    """Find the delta of each checkpoint.

    Args:
        checkpoints: POSIX paths relative to the zoo, each once; ``.`` is the zoo itself.
        zoo_root: The zoo as the user gave it.
        entries: The cache's entries.
        maps: (old, new) prefixes to rewrite in the cache's paths, whole components only; the first that fits is taken.
        absolute_root: The zoo's absolute path; found out when empty.
    """
    root = os.fspath(zoo_root)
    return _Join(checkpoints, root, absolute_root or os.path.abspath(root), entries, maps).run()  # noqa: PTH100


class _Join:
    """The state of one join: indices of checkpoints and entries that are still open."""

    def __init__(
        self,
        checkpoints: Sequence[str],
        root: str,
        absolute: str,
        entries: Sequence[DeltaEntry],
        maps: Sequence[tuple[str, str]],
    ) -> None:
        self._checkpoints, self._entries = checkpoints, entries
        self._roots = (root, absolute)
        self._relative = [_parts(path) for path in checkpoints]
        self._paths = [_rewrite(_parts(entry.path), maps) for entry in entries]
        absolute_parts = _parts(absolute)
        self._full = [_unwrap(absolute_parts + parts) for parts in self._relative]
        self._tails = [_unwrap(parts) for parts in self._paths]
        self._open = dict.fromkeys(range(len(checkpoints)))
        self._free = dict.fromkeys(range(len(entries)))
        self._matches: dict[int, tuple[int, str]] = {}
        self._ambiguous: dict[int, list[int]] = {}
        # What stands at each height above the end of the paths: the evidence against a renamed folder.
        self._zoo_heights = _heights(self._full)
        self._cache_heights = _heights(self._tails)

    def run(self) -> JoinResult:
        for root in self._roots:
            whole = _parts(root)
            self._pair("exact", [whole + parts for parts in self._relative], self._paths)
        self._pair("relative", self._relative, self._paths)
        for height in range(self._deepest(), 0, -1):
            self._pair_tails(height)
        self._pair_names()
        names = self._checkpoints
        return JoinResult(
            matches={names[c]: Match(self._entries[e], by) for c, (e, by) in sorted(self._matches.items())},
            missing=[names[c] for c in self._open],
            ambiguous=[
                (names[c], [self._entries[e] for e in found]) for c, found in sorted(self._ambiguous.items())
            ],
            unused=[self._entries[e] for e in self._free],
        )

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
        last = Counter(parts[-1:] for parts in self._full)
        names = _group((e for e in self._free if self._entries[e].name), lambda e: self._entries[e].name)
        for c in list(self._open):
            own = self._full[c][-1:]
            keys = [self._checkpoints[c], *(own if last[own] == 1 else ())]
            found = _unique(
                e for key in keys for e in names.get(key, []) if e in self._free and self._agree(c, e)
            )
            self._settle("name", [c], found)

    def _settle(self, by: str, claims: Sequence[int], found: Sequence[int]) -> None:
        """Join one with one; more on either side is ambiguous for all of them."""
        if not claims or not found:
            return
        if len(claims) == len(found) == 1:
            self._matches[claims[0]] = (found[0], by)
        else:
            listed = list(found[:_LISTED])
            self._ambiguous.update((c, listed) for c in claims)
        for c in claims:
            self._open.pop(c, None)
        for e in found:
            self._free.pop(e, None)

    def _claim(self, c: int, height: int) -> int:
        """How much a checkpoint speaks for a tail of this height: 2 alone is enough, 1 wants 1 of the delta."""
        path = self._full[c]
        if len(path) == height:
            return 2
        whole = len(_unwrap(self._relative[c]))
        covers, generic = height >= max(whole, 1), all(map(_generic, path[-height:]))
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


def checkpoint_parts(path: str) -> Parts:
    """The components that tell a checkpoint: less the name of its weights, and a closing ``adapter``."""
    return _unwrap(_rewrite(_parts(path), ()))


def _parts(path: str) -> Parts:
    """Whole components; an absolute path begins with ``/``, and Windows' separators count where no other are."""
    text = path.replace("\\", "/") if "\\" in path and "/" not in path else path
    parts = tuple(part for part in posixpath.normpath(text).split("/") if part not in ("", "."))
    return (("/",) if text.startswith("/") else ()) + parts


def _rewrite(parts: Parts, maps: Sequence[tuple[str, str]]) -> Parts:
    if parts[-1:] and parts[-1] in _WEIGHT_FILES:
        parts = parts[:-1]
    elif parts[-1:] and parts[-1].endswith(_WEIGHTS_SUFFIX):
        # A checkpoint that is one file, as in ``{dataset}/{N}.safetensors``, is called by its path without the suffix.
        parts = (*parts[:-1], parts[-1].removesuffix(_WEIGHTS_SUFFIX))
    for old, new in maps:
        prefix = _parts(old)
        if parts[: len(prefix)] == prefix:
            return _parts(new) + parts[len(prefix) :]
    return parts


def _unwrap(parts: Parts) -> Parts:
    return parts[:-1] if len(parts) > 1 and parts[-1] == _WRAPPER else parts


def _generic(part: str) -> bool:
    """Whether a component names no adapter in particular: only numbers and words of common use."""
    return all(word in _GENERIC for word in re.findall(r"[^\W\d_]+", part.lower()))


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


def _unique(indices: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(indices))
