"""Each public name, used wrongly, is refused at the entrance, in words of this project."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import llgbm_loader
import llgbm_pack
import llgbm_pack.raw
import llgbm_shards
from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_pack import LoraTokenizer2D
from llgbm_pack.raw import DeltaAugmentedDataset, DnDDatasetWithDelta, Text2Qwen25LoRA_DeltaDataset
from llgbm_shards import LlgbmError, ShardSet
from misuse import loader_rows, pack_rows, raw_rows, shards_rows
from misuse.rows import Row, World
from support.synthetic import write_set
from support.tiny_zoo import random_pairs, write_deltas, write_zoo

PUBLIC: tuple[ModuleType, ...] = (llgbm_shards, llgbm_loader, llgbm_pack, llgbm_pack.raw)
ROWS = [*shards_rows.ROWS, *loader_rows.ROWS, *pack_rows.ROWS, *raw_rows.ROWS]
#: Results, which users read and nobody but this project makes. Errors are left out by their type.
RESULTS = {"CheckReport", "Finding", "Module", "PackReport", "Sample"}
#: Methods whose misuse is tested elsewhere.
ELSEWHERE = {"DeltaCache"}
_LENGTH = 8


def _text_tokenizer(_text: str, **_options: Any) -> dict[str, torch.Tensor]:
    ids = torch.ones(1, _LENGTH, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": ids}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("misuse")
    write_set(root / "set", 12)
    write_deltas(root / "deltas", write_zoo(root / "zoo", 3))
    raw = Text2Qwen25LoRA_DeltaDataset(root / "zoo", LoraTokenizer2D(), _text_tokenizer, root / "deltas")
    with StreamingLoader(root / "set") as loader:
        yield World(
            root=root,
            opened=ShardSet(root / "set"),
            loader=loader,
            dataset=ShardDataset(root / "set"),
            raw=raw,
            augmented=DeltaAugmentedDataset(raw, root / "deltas"),
            wrapped=DnDDatasetWithDelta(raw, root / "deltas"),
            weights=random_pairs(0),
            text_tokenizer=_text_tokenizer,
        )


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_misuse_is_refused_at_the_entrance(world: World, row: Row) -> None:
    with pytest.raises(LlgbmError) as caught:
        row.call(world)
    error = caught.value
    assert isinstance(error, row.error)
    assert error.what
    assert error.where or error.got
    assert error.expected or error.got or error.do
    assert len(str(error).encode()) < 1500


def test_the_table_is_complete() -> None:
    """A new public name, or a new public method that takes something, needs a row."""
    assert _takers() <= {row.name for row in ROWS}


def _takers() -> set[str]:
    names: set[str] = set()
    for name, value in ((name, getattr(module, name)) for module in PUBLIC for name in module.__all__):
        if name in RESULTS or (isinstance(value, type) and issubclass(value, LlgbmError)):
            continue
        names.add(name)
        if isinstance(value, type) and name not in ELSEWHERE:
            names |= {f"{name}.{method}" for method in _methods(value)}
    return names


def _methods(kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if (name.startswith("_") and name != "__getitem__") or not inspect.isfunction(function):
            continue
        if len(inspect.signature(function).parameters) > isinstance(value, staticmethod) ^ 1:
            yield name


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_numbers_of_numpy_and_torch_are_numbers(world: World, number: Any) -> None:
    assert world.opened.extents(number) == world.opened.extents(3)
    assert world.opened.read_sample(number).key == world.dataset[number]["keys"] == world.opened.keys[3]
    assert StreamingLoader(world.path, readers=number, batch_size=number).close() is None
    assert (
        world.raw.has_delta(number - 1) == world.wrapped.has_delta(number - 1) == world.augmented.has_delta(2)
    )
    assert LoraTokenizer2D(rank=4 + number).layout(world.weights).rank == 7


def test_the_largest_numbers_are_taken(world: World) -> None:
    StreamingLoader(
        world.path, readers=1024, prefetch_batches=1024, max_bad_samples=2**63 - 1, seed=2**64 - 1
    ).close()
