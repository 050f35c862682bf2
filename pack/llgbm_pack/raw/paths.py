"""Which checkpoint each item of a foreign dataset is: asked of the dataset, without reading its items if possible."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.plan.values import Skip
from llgbm_pack.raw.deltas import DeltaSource, JoinedDeltas, join_verified
from llgbm_pack.raw.lists import (
    LISTS,
    METHOD,
    OWN_KEYS,
    REPEATED,
    describe_lists,
    known_paths,
    path_of,
    plain_path,
    same_checkpoint,
    still_listed,
)
from llgbm_pack.raw.repeats import ChosenIndices, ItemPaths, LazyMap
from llgbm_pack.raw.values import some_reasons
from llgbm_shards.arguments import require
from llgbm_shards.errors import UsageError

_LOG = logging.getLogger(__name__)
#: So many items are read for their paths at most.
_MOST_READ: Final = 10_000
#: Of (tokens, condition, checkpoint_path).
_PLACE: Final = 2


class ItemDeltas:
    """The deltas of a base dataset's items.

    Paths come from the base dataset's ``get_checkpoint_path(idx)``, ``valid_checkpoints``, ``checkpoint_paths``,
    ``checkpoints`` or ``samples``; a list counts when it is as long as the dataset, or when ``real_length`` tells how
    many of its entries are repeated (see :func:`~llgbm_pack.raw.lists.listed_items`). Torch's ``Subset`` and
    ``ConcatDataset`` are asked for those of their parts. Only when it has none of them its items are read, all of them,
    when a path is first needed, and at most 10,000. An item that carries a path of its own must be of the checkpoint
    that is listed for it: so each item that is read proves the list and its repetition.

    Args:
        base: The base dataset.
        source: The deltas.
        leave_out: Whether items without a delta are left out, or zeros stand for their deltas.

    Raises:
        UsageError: The base dataset has no length or no items, or its paths cannot be told but by reading more than
            10,000 items.
    """

    def __init__(self, base: Any, source: DeltaSource, *, leave_out: bool) -> None:
        right = hasattr(type(base), "__len__") and hasattr(type(base), "__getitem__")
        require(right, "base_dataset", "a dataset with __len__ and __getitem__", base)
        self._base, self._source, self._leave_out = base, source, leave_out
        self._told = known_paths(base)
        self._missing: list[Skip] | None = None
        if self._told is None:
            _refuse_to_read(base)
        else:
            self.tell_missing()

    @cached_property
    def paths(self) -> ItemPaths:
        """Path of each item; None where it has none."""
        return _read_paths(self._base) if self._told is None else self._told

    @cached_property
    def _plain(self) -> dict[str, str]:
        """The plain form of each path; it stays as it was when the deltas were joined, wherever the process goes."""
        return {path: plain_path(path) for path in self.paths.distinct()}

    @cached_property
    def joined(self) -> JoinedDeltas:
        """The joined deltas, by plain paths."""
        return join_verified(self._source, list(dict.fromkeys(self._plain.values())), zoo_root=".")

    def entry(self, idx: int) -> DeltaEntry | None:
        """The delta of an item, None when it has none."""
        path = self.paths[idx]
        return self.joined.entries.get(self._plain[path]) if path else None

    def array(self, idx: int) -> NDArray[np.float32] | None:
        """The delta of an item, (hidden,) float32, read from its file; None when it has none."""
        entry = self.entry(idx)
        return None if entry is None else self._source.load(entry)

    def of_item(self, idx: int, item: Any) -> tuple[Tensor, bool]:
        """The delta of an item that was read, and whether it is one, or zeros in its place."""
        self._refuse_another(idx, item)
        entry = self.entry(idx)
        return (self.joined.zeros(), False) if entry is None else (self._source.tensor(entry), True)

    def by_path(self) -> LazyMap[str, NDArray[np.float32]]:
        """The delta of each path that has one, (hidden,) float32; every look-up reads its file."""
        entries = self.joined.entries
        return self._source.by_path(
            {path: entries[plain] for path, plain in self._plain.items() if plain in entries}
        )

    @cached_property
    def kept(self) -> ChosenIndices:
        """Indices of the items that are not left out."""
        self.tell_missing()
        return self._having() if self._leave_out else ChosenIndices(self.paths, lambda _: True)

    def _having(self) -> ChosenIndices:
        return ChosenIndices(self.paths, self.by_path().__contains__)

    def _refuse_another(self, idx: int, item: Any) -> None:
        """See that an item is of the checkpoint that the base dataset lists for it, and listed when it was wrapped.

        It is refused when it says that it is of another: by position it would get that one's delta. Or when it does not
        say, and the list has changed.
        """
        own, joined = _path_in(item), self.paths[idx]
        if own and joined and (own == joined or _surely_a_path(item, own) or own in self._plain):
            if not same_checkpoint(own, joined):
                self._refuse_item(idx, joined, own)
        elif self._told is not None and not still_listed(self._base, idx, joined):
            raise UsageError(
                "the base dataset's list of checkpoints has changed after it was wrapped",
                where=f"item {idx} of {type(self._base).__name__}",
                expected=joined or "no path",
                do="Wrap it again, and leave its list as it is.",
            )

    def _refuse_item(self, idx: int, listed: str, own: str) -> None:
        raise UsageError(
            "an item of the base dataset is of another checkpoint than it lists",
            where=f"item {idx} of {type(self._base).__name__}",
            expected=listed,
            got=own,
            do=f"Give it a {METHOD}(idx), or put its list of paths in the order of its items: entry i for item i, "
            f"or i % {REPEATED} where it has that.",
        )

    def tell_missing(self) -> list[Skip]:
        """Items without a delta, with the reason; the first time a warning tells them.

        They are called by their path, without one ``item N``; repetitions are not listed.
        """
        if self._missing is None:
            rounds = list(self.paths.first_round())
            missing = [self._why_none(idx, path) for idx, path in rounds if self.entry(idx) is None]
            if missing:
                what = "left out" if self._leave_out else "zeros, has_delta False"
                have, count = len(self._having()), len(self.paths)
                _LOG.warning(
                    "%d of %d items have no delta (%s): %s", count - have, count, what, some_reasons(missing)
                )
                if not self._leave_out:
                    self.joined.zeros()  # raises now what would fail at the first of them
            self._missing = missing
        return self._missing

    def _why_none(self, idx: int, path: str | None) -> Skip:
        if not path:
            return Skip(f"item {idx}", "the base dataset gives it no path", fault=False)
        plain = self._plain[path]
        return Skip(path, self.joined.why_none(plain), plain in self.joined.faults)


def _refuse_to_read(base: Any) -> None:
    if len(base) > _MOST_READ:
        raise UsageError(
            "the base dataset does not tell its checkpoints, and has too many items to read them for their paths",
            where=type(base).__name__,
            expected=f"a list of checkpoints, or at most {_MOST_READ} items",
            got=describe_lists(base),
            do="Give it an attribute checkpoints: the path of each item; or, where item i is checkpoints[i % real_length], "
            f"the real_length paths that it repeats, and {REPEATED}. Or give it a {METHOD}(idx).",
        )


def _read_paths(base: Any) -> ItemPaths:
    """Paths of all items from the items themselves; the first tells whether they have any."""
    count = len(base)
    if count and _path_in(base[0]) is None:
        raise UsageError(
            "the base dataset does not tell its checkpoints",
            where=type(base).__name__,
            expected=f"{METHOD}(idx), a list {', '.join(LISTS[1:])}, or (tokens, condition, path) items",
            got="none of them",
        )
    _LOG.warning(
        "%s has no %s(idx): all of its %d items are read for their paths", type(base).__name__, METHOD, count
    )
    return ItemPaths.one_each([_path_in(base[idx]) for idx in range(count)])


def _path_in(item: Any) -> str | None:
    """The path in an item: a key of a map, or the third of a tuple."""
    if isinstance(item, (tuple, list)):
        return path_of(item[_PLACE]) if len(item) > _PLACE else None
    return path_of(item)


def _surely_a_path(item: Any, own: str) -> bool:
    """Whether the string found in an item cannot well be an answer, or the file of an image."""
    if isinstance(item, Mapping):
        return any(item.get(key) for key in OWN_KEYS)
    return isinstance(item[_PLACE], os.PathLike) or ("/" in own and len(own.split()) == 1)
