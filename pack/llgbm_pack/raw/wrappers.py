"""Wrappers that add deltas to a dataset that users already have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from llgbm_pack.plan.values import Skip
from llgbm_pack.raw.deltas import DeltaSource
from llgbm_pack.raw.lists import TellsPaths
from llgbm_pack.raw.paths import ItemDeltas
from llgbm_pack.raw.repeats import ChosenIndices, ItemPaths, LazyMap
from llgbm_pack.raw.values import (
    DeltaSample,
    collate_items,
    collate_tuples,
    item_number,
    require_batch,
    tokens_and_condition,
)
from llgbm_shards.arguments import is_number, require
from llgbm_shards.errors import UsageError


class DeltaAugmentedDataset(TellsPaths, Dataset[DeltaSample]):
    """Adds deltas to a dataset of (tokens, condition, ...) tuples, or of maps with these keys.

    The base dataset's items are not read at construction. Where it does not tell the paths of its checkpoints (see
    :class:`llgbm_pack.raw.paths.ItemDeltas`) they are read through once, when the first length or item is asked for.

    Args:
        base_dataset: The dataset.
        delta_cache: A ``DeltaCache`` or its directory.
        require_delta: True leaves out items without a delta; False gives them zeros.

    Raises:
        UsageError: The cache cannot be used; a checkpoint has two deltas; the width of zeros is not known.
        StorageError: The cache cannot be read.
    """

    def __init__(self, base_dataset: Any, delta_cache: Any, require_delta: bool = True) -> None:
        require(isinstance(require_delta, bool), "require_delta", "True or False", require_delta)
        self.base_dataset = base_dataset
        self.delta_cache = delta_cache
        self.require_delta = require_delta
        self._deltas = ItemDeltas(base_dataset, DeltaSource(delta_cache), leave_out=require_delta)

    @property
    def valid_indices(self) -> ChosenIndices:
        """Item ``i`` is item ``valid_indices[i]`` of the base dataset."""
        return self._deltas.kept

    @property
    def delta_map(self) -> Mapping[int, NDArray[np.float32] | None]:
        """Delta arrays by index in the base dataset, read when looked up; None where zeros stand for one."""
        return LazyMap(self.valid_indices, self._deltas.array)

    @property
    def skipped(self) -> list[Skip]:
        """Items of the base dataset that are left out, with reasons; those that it repeats once."""
        return list(self._deltas.tell_missing()) if self.require_delta else []

    def __len__(self) -> int:
        return len(self.valid_indices)

    def __getitem__(self, idx: SupportsIndex) -> DeltaSample:
        """One item.

        Returns:
            (tokens, condition, delta): tokens as the base dataset has them, as a tensor; its condition as it is; delta
            (hidden,) float32. The tuple's ``has_delta`` is False where delta is zeros in place of a missing one.

        Raises:
            UsageError: The item carries the path of another checkpoint than the base dataset lists for it; or none, and
                the list has changed.
        """
        place = self.valid_indices[item_number(idx)]
        item = self.base_dataset[place]
        delta, has_delta = self._deltas.of_item(place, item)
        tokens, condition = tokens_and_condition(item)
        return DeltaSample((tokens, condition, delta), has_delta)

    def has_delta(self, idx: SupportsIndex) -> bool:
        """Whether an item has a delta; the item is not read."""
        return self._deltas.entry(self.valid_indices[item_number(idx)]) is not None

    def item_paths(self) -> ItemPaths:
        """Paths of the items, None for one to which the base dataset gives none."""
        return self.valid_indices.paths

    @staticmethod
    def collate_fn(batch: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """A batch of items.

        Returns:
            tokens (B, ...); condition (B, ...), for tokenizer outputs a map of (B, L), or (B, K, L) of K texts an item,
            else a list; delta (B, hidden); has_delta (B,) bool, absent when the items are plain tuples.

        Raises:
            UsageError: Not a batch of items, or tensors of different shapes.
        """
        require_batch(batch, (tuple, list))
        return collate_tuples(batch, ("tokens", "condition", "delta"))


class DnDDatasetWithDelta(TellsPaths, Dataset[Any]):
    """Adds deltas to Drag-and-Drop-LLMs' datasets, or others: the same items in the same order, and a delta each.

    Items are not read at construction; paths are found as :class:`DeltaAugmentedDataset` finds them.

    Args:
        base_dataset: The dataset.
        delta_cache_dir: Directory of the delta cache, or a ``DeltaCache``.
        fallback_delta_norm: Norm of what stands for a missing delta. Only 0.0 (zeros) can be had: a vector of another
            norm would have a made-up direction, which nobody could tell from a teacher's.

    Raises:
        UsageError: An argument cannot be used; a checkpoint has two deltas; the width of zeros is not known.
        StorageError: The cache cannot be read.
    """

    def __init__(
        self,
        base_dataset: Any,
        delta_cache_dir: Any = "deltas",
        fallback_delta_norm: float = 0.0,
    ) -> None:
        if not is_number(fallback_delta_norm) or fallback_delta_norm != 0:
            raise UsageError(
                "a missing delta can only be zeros",
                where="fallback_delta_norm",
                expected="0.0",
                got=repr(fallback_delta_norm),
                do="Mask missing deltas by has_delta in the loss.",
            )
        self.base_dataset = base_dataset
        source = DeltaSource(delta_cache_dir)
        self.delta_cache = source.cache
        self.fallback_delta_norm = fallback_delta_norm
        self._deltas = ItemDeltas(base_dataset, source, leave_out=False)

    @property
    def hidden_size(self) -> int:
        """Width of the deltas."""
        return self._deltas.joined.width

    @property
    def idx_to_path(self) -> Mapping[int, str]:
        """Paths of the items that have one."""
        paths = self._deltas.paths
        return LazyMap(ChosenIndices(paths, bool), cast("Callable[[int], str]", paths.__getitem__))

    @property
    def all_deltas(self) -> Mapping[str, NDArray[np.float32]]:
        """Delta arrays by the paths of :attr:`idx_to_path`, read when looked up."""
        return self._deltas.by_path()

    @property
    def missing(self) -> list[Skip]:
        """Items whose delta is zeros, with reasons; those that the base dataset repeats once."""
        return list(self._deltas.tell_missing())

    def __len__(self) -> int:
        return len(self.base_dataset)

    def __getitem__(self, idx: SupportsIndex) -> Any:
        """The base dataset's item with its delta.

        Returns:
            Of a tuple (tokens, condition, ...): (tokens, condition, delta, ...), whose ``has_delta`` tells whether delta
            is one. Of a map: a copy with ``delta`` (hidden,) float32 and ``has_delta`` () bool. Of anything else:
            (item, delta).

        Raises:
            UsageError: The item carries the path of another checkpoint than the base dataset lists for it; or none, and
                the list has changed.
        """
        self._deltas.tell_missing()
        place = range(len(self.base_dataset))[item_number(idx)]
        item = self.base_dataset[place]
        delta, has_delta = self._deltas.of_item(place, item)
        if isinstance(item, Mapping):
            return {**item, "delta": delta, "has_delta": torch.tensor(has_delta)}
        if isinstance(item, (tuple, list)):
            return DeltaSample((*item[:2], delta, *item[2:]), has_delta)
        return DeltaSample((item, delta), has_delta)

    def has_delta(self, idx: SupportsIndex) -> bool:
        """Whether an item has a delta; the item is not read."""
        return self._deltas.entry(range(len(self))[item_number(idx)]) is not None

    def item_paths(self) -> ItemPaths:
        """Paths of the items, None for one to which the base dataset gives none."""
        return self._deltas.paths

    def collate_fn_train(self, batch: Sequence[Any]) -> dict[str, Any]:
        """A batch of items.

        Returns:
            Of tuples: tokens, condition, delta, has_delta as :meth:`DeltaAugmentedDataset.collate_fn` has them; what
            follows the delta is left out. Of maps: every key, tensors and tokenizer outputs stacked, other values in
            lists.

        Raises:
            UsageError: Not a batch of items; tensors of different shapes, maps of different keys.
        """
        require_batch(batch, (tuple, list, Mapping))
        if isinstance(batch[0], Mapping):
            return collate_items(batch)
        names = ("tokens", "delta") if len(batch[0]) == 2 else ("tokens", "condition", "delta")
        return collate_tuples(batch, names)

    collate_fn = collate_fn_train


def wrap_dnd_dataset(
    dataset_class: Callable[..., Any], delta_cache_dir: Any = "deltas", **dataset_kwargs: Any
) -> DnDDatasetWithDelta:
    """Make a dataset and wrap it.

    Args:
        dataset_class: Its class.
        delta_cache_dir: Directory of the delta cache, or a ``DeltaCache``.
        **dataset_kwargs: Arguments of the class.

    Raises:
        UsageError: As :class:`DnDDatasetWithDelta`.
        StorageError: As :class:`DnDDatasetWithDelta`.
    """
    require(callable(dataset_class), "dataset_class", "a class", dataset_class)
    return DnDDatasetWithDelta(dataset_class(**dataset_kwargs), delta_cache_dir)
