"""What foreign tokenizers and datasets hand out, as tensors; the items that the datasets here give, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from llgbm_pack.plan.values import Skip
from llgbm_shards.arguments import require, whole_number
from llgbm_shards.errors import UsageError

#: Keys of a text tokenizer's output.
_IDS, _MASK = "input_ids", "attention_mask"
#: Keys of ids in an item of a base dataset.
_ITEM_IDS: Final = ("condition_ids", _IDS)
#: Reasons shown in a warning.
_SHOWN: Final = 3


class DeltaSample(tuple[Any, ...]):
    """A plain tuple that also knows whether its delta is one, or zeros in its place."""

    has_delta: bool

    def __new__(cls, values: Sequence[Any], has_delta: bool = True) -> DeltaSample:
        """A tuple of the values."""
        sample = super().__new__(cls, values)
        sample.has_delta = has_delta
        return sample


def some_reasons(skips: Sequence[Skip]) -> str:
    """The first of some skips, for a warning."""
    return "; ".join(f"{skip.checkpoint}: {skip.reason}" for skip in skips[:_SHOWN])


def as_tensor(value: object, where: str) -> Tensor:
    """A tensor without its gradient; an array as a tensor of its dtype, on its memory where that can be written to."""
    if isinstance(value, Tensor):
        return value.detach()  # a worker that is to send a gradient hangs
    if not isinstance(value, np.ndarray):
        raise UsageError(
            "not a tensor", where=where, expected="a torch tensor or a numpy array", got=type(value).__name__
        )
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    try:
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except TypeError as error:
        raise UsageError("array of a dtype that torch has not", where=where, got=f"{value.dtype}") from error


def item_number(idx: object) -> int:
    """The number of an item as a list takes it; out of range it is an IndexError there."""
    return whole_number("idx", idx)


def require_batch(batch: object, kind: type | tuple[type, ...]) -> None:
    """Refuse what is not a list of one or more items of a kind."""
    right = isinstance(batch, list | tuple) and len(batch) > 0 and all(isinstance(one, kind) for one in batch)
    require(right, "batch", "a list of one or more items of the dataset", batch)


def tokens_and_condition(item: Any) -> tuple[Any, Any]:
    """Tokens and condition of an item of a base dataset: the condition as it is, an array of tokens as a tensor."""
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return _as_tokens(item[0]), item[1]
    if isinstance(item, Mapping) and "tokens" in item:
        if "condition" in item:
            return _as_tokens(item["tokens"]), item["condition"]
        ids = next((item[key] for key in _ITEM_IDS if key in item), None)
        if ids is not None:
            return _as_tokens(item["tokens"]), {_IDS: ids, _MASK: item[_MASK]} if _MASK in item else ids
    raise UsageError(
        "no tokens and condition in an item of the base dataset",
        expected="(tokens, condition, ...), or a map with tokens and condition or condition_ids",
        got=", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__,
    )


def _as_tokens(value: Any) -> Any:
    return as_tensor(value, "tokens") if isinstance(value, np.ndarray) else value


def condition_tensors(encoded: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of one text, (L,) int64 each, from a text tokenizer's output.

    There they may be tensors, arrays or lists, (L,) or (1, L).
    """
    if not is_tokenizer_output(encoded) or _MASK not in encoded:
        raise UsageError(
            "not a text tokenizer's output",
            where="text_tokenizer",
            expected="input_ids and attention_mask",
            got=", ".join(map(str, encoded)) if isinstance(encoded, Mapping) else type(encoded).__name__,
        )
    ids, mask = (_one_row(encoded[name], name) for name in (_IDS, _MASK))
    if ids.shape != mask.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        raise UsageError("ids and mask of different lengths", where="text_tokenizer", got=shapes)
    return ids, mask


def is_tokenizer_output(value: object) -> bool:
    """Whether a value is what text tokenizers return: a map with ``input_ids``."""
    return isinstance(value, Mapping) and _IDS in value


def collate_values(values: Sequence[Any], where: str) -> Any:
    """One value of each item of a batch: tensors and arrays stacked, maps by key, tokenizer outputs too, others listed.

    Tokenizer outputs are stacked as they are: (L,) of one text to (B, L), (K, L) of K texts to (B, K, L), K = 1 too.
    """
    first = values[0]
    if isinstance(first, (Tensor, np.ndarray)):
        return stack([as_tensor(value, where) for value in values], where)
    if is_tokenizer_output(first):
        keys = common_keys(values, where)
        return {key: stack([_encoded(value[key], key) for value in values], key) for key in keys}
    if isinstance(first, Mapping):
        return collate_items(values, where)
    return list(values)


def collate_items(items: Sequence[Mapping[str, Any]], where: str = "batch") -> dict[str, Any]:
    """Items of a batch that are maps: one map of collated values."""
    keys = common_keys(items, where)
    return {key: collate_values([item[key] for item in items], str(key)) for key in keys}


def collate_tuples(batch: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, Any]:
    """A batch of tuples: a map of their first places by name, and ``has_delta`` where they know it."""
    columns = {name: collate_values([item[at] for item in batch], name) for at, name in enumerate(names)}
    known = [item.has_delta for item in batch if isinstance(item, DeltaSample)]
    return {**columns, "has_delta": torch.tensor(known)} if len(known) == len(batch) else columns


def stack(tensors: Sequence[Tensor], where: str) -> Tensor:
    """Tensors of one shape, stacked along a new first dimension."""
    shapes = dict.fromkeys(tuple(tensor.shape) for tensor in tensors)
    if len(shapes) > 1:
        raise UsageError(
            "shapes differ within one batch",
            where=where,
            got=" and ".join(map(str, list(shapes)[:4])),
            do="Batch only equal shapes: pad texts to max_length, keep adapters of one layout together.",
        )
    return torch.stack(list(tensors))


def common_keys(items: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """The keys that all of some maps have, in the first one's order; a key that is not in all is refused."""
    keys = list(items[0])
    for item in items:
        if set(item) != set(keys):
            odd = ", ".join(map(str, sorted(set(item) ^ set(keys), key=str)))
            raise UsageError("items of different keys in one batch", where=where, got=f"not in all: {odd}")
    return keys


def _one_row(value: object, name: str) -> Tensor:
    row = _encoded(value, name)
    row = row.squeeze(0) if row.ndim == 2 and row.shape[0] == 1 else row
    if row.ndim != 1:
        raise UsageError("not the ids of one text", where=name, expected="(L,)", got=f"{tuple(row.shape)}")
    return row


def _encoded(value: object, name: str) -> Tensor:
    """A value of a text tokenizer's output: int64, but what has fractions beside ids and mask is left as it is."""
    tensor = _of_lists(value, name) if isinstance(value, (list, tuple)) else as_tensor(value, name)
    return tensor if tensor.is_floating_point() and name not in (_IDS, _MASK) else tensor.long()


def _of_lists(value: Sequence[Any], name: str) -> Tensor:
    try:
        return torch.tensor(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            "lists that are no tensor",
            where=name,
            expected="numbers, as many for each text",
            got=str(error),
            do='Tokenize with padding="max_length" and truncation=True.',
        ) from error
