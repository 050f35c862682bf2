"""The items that the wrappers take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from llgbm_pack.raw.values import as_tensor, collate_values
from llgbm_shards.errors import UsageError

_IDS: Final = ("condition_ids", "input_ids")


class DeltaSample(tuple[Any, ...]):
    """A plain tuple that also knows whether its delta is one, or zeros in its place.

    Attributes:
        has_delta: Whether the delta is one.
    """

    has_delta: bool

    def __new__(cls, values: Sequence[Any], has_delta: bool = True) -> DeltaSample:
        """A tuple of the values."""
        sample = super().__new__(cls, values)
        sample.has_delta = has_delta
        return sample


def tokens_and_condition(item: Any) -> tuple[Any, Any]:
    """Tokens and condition of an item of a base dataset: the condition as it is, an array of tokens as a tensor.

    Raises:
        UsageError: It has none.
    """
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return _as_tokens(item[0]), item[1]
    if isinstance(item, Mapping) and "tokens" in item:
        if "condition" in item:
            return _as_tokens(item["tokens"]), item["condition"]
        ids = next((item[key] for key in _IDS if key in item), None)
        if ids is not None:
            mask = {"attention_mask": item["attention_mask"]} if "attention_mask" in item else {}
            return _as_tokens(item["tokens"]), {"input_ids": ids, **mask} if mask else ids
    raise UsageError(
        "no tokens and condition in an item of the base dataset",
        expected="(tokens, condition, ...), or a map with tokens and condition or condition_ids",
        got=", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__,
    )


def _as_tokens(value: Any) -> Any:
    return as_tensor(value, "tokens") if isinstance(value, np.ndarray) else value


def collate_tuples(batch: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, Any]:
    """A batch of tuples: a map of their first places by name, and ``has_delta`` where they know it.

    Raises:
        UsageError: Tensors of different shapes.
    """
    columns = {name: collate_values([item[at] for item in batch], name) for at, name in enumerate(names)}
    known = [item.has_delta for item in batch if isinstance(item, DeltaSample)]
    return {**columns, "has_delta": torch.tensor(known)} if len(known) == len(batch) else columns
