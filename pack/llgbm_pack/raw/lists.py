"""Which checkpoint each item is, as a dataset tells it: by a method, its parts, or a list that it may repeat."""

from __future__ import annotations

import operator
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, SupportsIndex

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from llgbm_pack.deltas.paths import checkpoint_parts
from llgbm_pack.raw.repeats import Cycle, ItemPaths
from llgbm_pack.raw.values import item_number
from llgbm_pack.sources.directory import CONFIG, WEIGHTS
from llgbm_shards.errors import UsageError

#: A method that tells the path of an item.
METHOD: Final = "get_checkpoint_path"
#: Attributes that hold checkpoints, in the order in which they are tried.
LISTS: Final = ("valid_checkpoints", "checkpoint_paths", "checkpoints", "samples")
#: Where a dataset that repeats its checkpoints says how many they are: its item i is checkpoint i modulo this.
REPEATED: Final = "real_length"
#: Where an item, or an entry of such a list, keeps its path; under the first two names nothing else is kept.
_KEYS: Final = ("checkpoint_path", "adapter_path", "path", "checkpoint")
OWN_KEYS: Final = _KEYS[:2]
#: A checkpoint that is one file is called by its path without this.
_SUFFIX: Final = ".safetensors"


class TellsPaths:
    """A dataset that knows the paths of all of its items."""

    def item_paths(self) -> ItemPaths:
        """The path of each item, None for one to which the base dataset gives none."""
        raise NotImplementedError

    def get_checkpoint_path(self, idx: SupportsIndex) -> str | None:
        """Path of an item's checkpoint, None when the base dataset gives it none."""
        return self.item_paths()[item_number(idx)]


def known_paths(base: Any) -> ItemPaths | None:
    """Paths of all items as the dataset itself tells them, None when it does not.

    An IndexError means that a ``Subset`` is of items that its dataset does not have.
    """
    if isinstance(base, Subset):
        whole = known_paths(base.dataset)
        return None if whole is None else whole.part(base.indices)
    if isinstance(base, ConcatDataset):
        parts = [known_paths(part) for part in base.datasets]
        told = [part for part in parts if part is not None]
        cycles = [cycle for part in told for cycle in part.cycles]
        return ItemPaths(cycles) if len(told) == len(parts) else None
    method = getattr(base, METHOD, None)
    if getattr(method, "__func__", None) is TellsPaths.get_checkpoint_path and len(base.item_paths()) == len(
        base
    ):
        return base.item_paths()  # type: ignore[no-any-return]
    if callable(method):
        return ItemPaths.one_each([path_of(method(idx)) for idx in range(len(base))])
    cycle = listed_items(base)
    return None if cycle is None else ItemPaths([cycle])


def still_listed(base: Any, idx: int, path: str | None) -> bool:
    """Whether a dataset whose paths were known lists this one for an item yet; what a method tells is not asked again."""
    if isinstance(base, Subset):
        return still_listed(base.dataset, base.indices[idx], path)
    idx = range(len(base))[operator.index(idx)]
    if isinstance(base, ConcatDataset):
        at = bisect_right(base.cumulative_sizes, idx)
        before = base.cumulative_sizes[at - 1] if at else 0
        return still_listed(base.datasets[at], idx - before, path)
    if callable(getattr(base, METHOD, None)):
        return True
    length = _repeated(base) or len(base)
    entries = [path_of(listed[idx % length]) for listed in _lists(base).values() if len(listed) == length]
    told = [entry for entry in entries if entry]
    return all(same_checkpoint(entry, path) for entry in told) if path and told else not told and not path


def listed_items(base: Any) -> Cycle | None:
    """The items as a list of the dataset tells them; None where no list surely does.

    Without ``real_length`` a list counts when it is as long as the dataset. With it, item ``i`` is entry ``i %
    real_length``, as in Drag-and-Drop-LLMs' datasets, and a list counts when it has so many entries: of a longer one,
    nothing says which of them are repeated. Lists that disagree about which they are, are refused.
    """
    count, repeated = len(base), _repeated(base)
    cycles = {name: _cycle(listed, count, repeated) for name, listed in _lists(base).items()}
    told = {name: cycle for name, cycle in cycles.items() if cycle is not None}
    if not told:
        return None
    first, *others = [list(cycle.paths) for cycle in told.values()]
    if not all(_agree(first, other) for other in others):
        raise UsageError(
            "the base dataset has lists of checkpoints that disagree",
            where=f"{' and '.join(told)} of {type(base).__name__}",
            expected="the same checkpoints in the same order",
            do="Give it a get_checkpoint_path(idx), or keep the one list that its items are of.",
        )
    return next(iter(told.values()))


def describe_lists(base: Any) -> str:
    """What a dataset has for lists, for messages."""
    repeated = _repeated(base)
    rows = [f"{name} of {len(listed)}" for name, listed in _lists(base).items()]
    rows += [] if repeated is None else [f"{REPEATED} {repeated}"]
    return ", ".join([*rows, f"{len(base)} items"])


def path_of(value: Any) -> str | None:
    """The path in an entry of a list: itself, or a key of a map."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if value.get(key)), None)
    return os.fspath(value) or None if isinstance(value, (str, os.PathLike)) else None


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two paths mean one checkpoint; one that is relative may begin at any folder of the other."""
    if one == other:
        return True
    short, long = sorted((checkpoint_parts(one), checkpoint_parts(other)), key=len)
    if short and long[-len(short) :] == short:
        return True
    return os.path.realpath(plain_path(one)) == os.path.realpath(plain_path(other))


def plain_path(path: str) -> str:
    """A checkpoint's path without the name of its weights or config; one below the working directory relative to it."""
    pure, here = PurePath(os.path.normpath(path)), Path.cwd()
    if pure.name in (WEIGHTS, CONFIG):  # in place of the checkpoint
        pure = pure.parent
    elif pure.suffix == _SUFFIX:
        pure = pure.with_suffix("")
    return str(pure.relative_to(here) if pure.is_relative_to(here) else pure)


def _agree(one: list[str | None], other: list[str | None]) -> bool:
    pairs = zip(one, other, strict=True)
    return one == other or all(a == b or bool(a and b and same_checkpoint(a, b)) for a, b in pairs)


def _lists(base: Any) -> dict[str, Any]:
    held = {name: getattr(base, name, None) for name in LISTS}
    return {
        name: listed
        for name, listed in held.items()
        if isinstance(listed, (Sequence, np.ndarray)) and not isinstance(listed, str)
    }


def _repeated(base: Any) -> int | None:
    length = getattr(base, REPEATED, None)
    if not isinstance(length, (int, np.integer)) or isinstance(length, bool) or length < 1:
        return None
    return int(length)


def _cycle(listed: Any, count: int, repeated: int | None) -> Cycle | None:
    if len(listed) != (count if repeated is None else repeated):
        return None
    paths = [path_of(item) for item in listed[:count]]
    return Cycle(paths, count) if any(paths) or not count else None
