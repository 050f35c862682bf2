"""Which checkpoint each item is, by a list of checkpoints that a dataset keeps and may repeat."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from llgbm_pack.raw.repeats import Cycle
from llgbm_shards.errors import UsageError

#: Attributes that hold checkpoints, in the order in which they are tried.
LISTS: Final = ("valid_checkpoints", "checkpoint_paths", "checkpoints", "samples")
#: Where a dataset that repeats its checkpoints says how many they are: its item i is checkpoint i modulo this.
REPEATED: Final = "real_length"
#: Where an item, or an entry of such a list, keeps its path; under the first two names nothing else is kept.
_KEYS: Final = ("checkpoint_path", "adapter_path", "path", "checkpoint")
OWN_KEYS: Final = _KEYS[:2]


def listed_items(base: Any) -> Cycle | None:
    """The items as a list of the dataset tells them; None where no list surely does.

    Without ``real_length`` a list counts when it is as long as the dataset. With it, item ``i`` is entry ``i %
    real_length``, as in Drag-and-Drop-LLMs' datasets, and a list counts when it has so many entries: of a longer one,
    nothing says which of them are repeated.

    Raises:
        UsageError: It repeats its checkpoints, and has lists that disagree about which they are.
    """
    count, repeated = len(base), _repeated(base)
    found = {name: _cycle(listed, count, repeated) for name, listed in _lists(base).items()}
    told = {name: cycle for name, cycle in found.items() if cycle is not None}
    if not told:
        return None
    if repeated is not None and len({tuple(cycle.paths) for cycle in told.values()}) > 1:
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
