"""A row of the table: one wrong use of one public name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_pack.raw import DeltaAugmentedDataset, DnDDatasetWithDelta, Text2Qwen25LoRA_DeltaDataset
from llgbm_shards import LlgbmError, ShardSet, UsageError

HUGE = 10**30
#: More digits than Python prints.
ENDLESS = 10**5000
#: What no path is: other types, a NUL, half a surrogate pair, which no file system encoding has.
NO_PATHS = (None, 3, True, b"x", ["x"], "a\0b", Path("a\0b"), "a\ud800b")
NO_COUNTS = (None, 0, -1, 1.5, True, "1", HUGE, ENDLESS, torch.ones(2))
NO_BOOLS = (None, 1, "yes", [])


class BytesPath(os.PathLike[bytes]):
    """A path in bytes."""

    def __fspath__(self) -> bytes:
        return b"x"


@dataclass(frozen=True, kw_only=True)
class World:
    """What the calls of the table need; nobody changes it.

    Attributes:
        root: Where there is a ``set``, a ``zoo``, ``deltas``, and nothing else.
        opened: The set.
        loader: A loader of it.
        dataset: A dataset of it.
        raw: A raw dataset of the zoo.
        augmented: A wrapper of it.
        wrapped: Another wrapper of it.
        weights: An adapter's tensors.
        text_tokenizer: What answers as a transformers tokenizer does.
    """

    root: Path
    opened: ShardSet
    loader: StreamingLoader
    dataset: ShardDataset
    raw: Text2Qwen25LoRA_DeltaDataset
    augmented: DeltaAugmentedDataset
    wrapped: DnDDatasetWithDelta
    weights: dict[str, Tensor]
    text_tokenizer: Callable[..., dict[str, Tensor]]

    @property
    def path(self) -> Path:
        """The set's directory."""
        return self.root / "set"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A call, and the error that it must end in."""

    name: str
    wrong: str
    call: Callable[[World], Any]
    error: type[LlgbmError] = UsageError

    def __str__(self) -> str:
        return f"{self.name}({self.wrong})"


def each(
    name: str,
    argument: str,
    values: Iterable[Any],
    call: Callable[[World, Any], Any],
    error: type[LlgbmError] = UsageError,
) -> list[Row]:
    """A row for each wrong value of one argument."""
    return [
        Row(
            name=name,
            wrong=f"{argument}={label(value)}",
            call=lambda world, v=value: call(world, v),
            error=error,
        )
        for value in values
    ]


def keywords(
    name: str, wrong: dict[str, Iterable[Any]], call: Callable[..., Any], error: type[LlgbmError] = UsageError
) -> list[Row]:
    """A row for each wrong value of each keyword argument."""
    return [
        row
        for argument, values in wrong.items()
        for row in each(
            name, argument, values, lambda world, value, a=argument: call(world, **{a: value}), error
        )
    ]


def label(value: Any) -> str:
    """A short name of a value, for the test's id."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= HUGE:
        return "huge" if value == HUGE else "endless"
    if isinstance(value, Tensor):
        return f"tensor-{value.dtype}-{tuple(value.shape)}-{value.layout}-{value.device}".replace(
            "torch.", ""
        )
    text = ascii(value)[:60]
    return type(value).__name__ if " at 0x" in text else text  # test ids are equal in every process
