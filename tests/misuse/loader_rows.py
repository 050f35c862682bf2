"""Wrong uses of ``llgbm_loader``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llgbm_loader import ShardDataset, StreamingLoader, frame_tokens
from llgbm_loader.frame import unframe
from llgbm_shards import StorageError
from misuse.rows import ENDLESS, HUGE, NO_COUNTS, NO_PATHS, BytesPath, Row, World, each, keywords
from misuse.shards_rows import NO_DIGESTS

_NO_OVERLAYS = tuple(path for path in NO_PATHS if path not in (None, ["x"]))
_READ: dict[str, Any] = {
    "split": (3, "test", b"train", ["train"], True),
    "fields": (3, "tokens", [], ["pieces"], [None], [["tokens"]], True),
    "overlay": (*_NO_OVERLAYS, BytesPath(), [], [3], [["x"]], ["a\0b"], ["x", "x"], {"x": 3}.values()),
    "filters": (3, "task", [3], [("task",)], [("absent", "==", 1)], [("task", "like", "a")], True),
    "view": (None, 3, "tensors", ["flat"]),
    "frame": (None, 3, "DnD", ["dnd"]),
    "zero_std": (None, 0, "nil", float("nan")),
    "dtype": ("float32", 3, torch.int32, torch.float64, np.float32),
    "form": (None, 3, "question", ["prompt"]),
    "mix": (None, "0.2", -0.1, 1.1, True, float("nan"), 1j, ENDLESS),
    "num_texts": (0, -1, 1.5, True, "1", HUGE, ENDLESS),
    "max_text_length": (*NO_COUNTS, 10**12),
    "padding": (None, 3, "left"),
    "verify": (None, True, "maybe"),
    "seed": (None, 0.5, True, "0", HUGE, -HUGE, ENDLESS),
    "expect_digest": (*NO_DIGESTS, [], ["0" * 64] * 2),
}
_STREAM: dict[str, Any] = {
    "batch_size": NO_COUNTS,
    "device": (
        None,
        -1,
        True,
        1.5,
        HUGE,
        ENDLESS,
        99,
        "gpu",
        "cuda:99",
        "cpu:7x",
        "meta",
        b"cpu",
        "\0",
        ["cpu"],
    ),
    "shuffle": (None, 1, "yes", ["shards"]),
    "rank": (-1, 1.5, True, "0", 0, HUGE),
    "world_size": (0, -1, 1.5, True, "1", 1, HUGE),
    "remainder": (None, True, "keep"),
    "on_bad_sample": (None, True, "ignore"),
    "max_bad_samples": (None, -1, 1.5, True, "1"),
    "readers": (*NO_COUNTS, 1025),
    "prefetch_batches": (*NO_COUNTS, 1025),
}


def _stream(world: World, **wrong: Any) -> Any:
    return StreamingLoader(world.path, **wrong).close()


def _large(world: World, **wrong: Any) -> Any:
    return StreamingLoader(world.path, remainder="pad", **wrong).close()


def _dataset(world: World, **wrong: Any) -> Any:
    return ShardDataset(world.path, **wrong)


def _framed(_: World, **wrong: Any) -> Any:
    return frame_tokens(**{"body": torch.ones(3, 2, 4), "scales": torch.ones(3, 2), **wrong})


def _tensors(*good: int) -> list[Any]:
    """What is no tensor of floats of this shape, and not in one piece."""
    ones = torch.ones(good)
    kinds = [ones.int(), ones.bool(), ones.to(torch.complex64), ones.to_sparse(), ones[0]]
    return [None, 3, "x", ones.tolist(), ones.numpy(), {}, *kinds]


_NO_PATHS = tuple(path for path in NO_PATHS if path != ["x"])
_PATHS = (*_NO_PATHS, BytesPath(), [], [None], ["x", 3], ["a\0b"], {"x": 3}.values())

ROWS: list[Row] = [
    *each("StreamingLoader", "path", _PATHS, lambda _, value: StreamingLoader(value)),
    *each(
        "StreamingLoader",
        "path",
        ("/no/such", "x" * 300),
        lambda _, value: StreamingLoader(value),
        StorageError,
    ),
    *keywords("StreamingLoader", {**_READ, **_STREAM}, _stream),
    *each("StreamingLoader", "overlay", ("/no/such",), lambda w, v: _stream(w, overlay=v), StorageError),
    *each("ShardDataset", "overlay", (["/no/such"],), lambda w, v: _dataset(w, overlay=v), StorageError),
    # A set is no overlay of itself.
    *[
        Row(name=name, wrong="overlay=the set", call=lambda w, c=call: c(w, overlay=w.path))
        for name, call in (("StreamingLoader", _stream), ("ShardDataset", _dataset))
    ],
    *keywords(
        "StreamingLoader", {"batch_size": (10**9, 10**15, HUGE, ENDLESS), "world_size": (HUGE,)}, _large
    ),
    *each(
        "StreamingLoader.set_epoch", "epoch", (None, -1, 0.5, True, "1"), lambda w, v: w.loader.set_epoch(v)
    ),
    *each(
        "StreamingLoader.load_state_dict",
        "state",
        (None, 3, [], {}, "{}", {"version": 1}, {"version": np.array([1, 2])}),
        lambda w, value: w.loader.load_state_dict(value),
    ),
    *each(
        "StreamingLoader.load_state_dict",
        "place",
        ({"epoch": -1}, {"epoch": "0"}, {"position": HUGE}, {"position": 0.5}, {"seed": np.array([0, 1])}),
        lambda w, value: w.loader.load_state_dict({**w.loader.state_dict(), **value}),
    ),
    *each("ShardDataset", "path", _PATHS, lambda _, value: ShardDataset(value)),
    *each("ShardDataset", "path", ("/no/such",), lambda _, value: ShardDataset(value), StorageError),
    *keywords("ShardDataset", {**_READ, "verify": (None, True, "first-epoch")}, _dataset),
    *each("ShardDataset.set_epoch", "epoch", (None, -1, 0.5, True, "1"), lambda w, v: w.dataset.set_epoch(v)),
    *each(
        "ShardDataset.__getitem__",
        "sample",
        (None, 0.0, True, b"x", "", "no key", [0], np.float64(0), np.array([0, 1])),
        lambda w, value: w.dataset[value],
    ),
    *keywords(
        "frame_tokens",
        {
            "body": _tensors(3, 2, 4),
            "scales": _tensors(3, 2),
            "frame": (None, 3, ["dnd"], np.array(["dnd", "none"])),
            "zero_std": (None, 0, "x"),
            "dtype": ("float32", 3, True, torch.int32, torch.complex64, torch.bool, np.float32),
            "out": (*_tensors(3, 4, 6)[1:], torch.ones(3, 4, 6, device="meta")),
        },
        _framed,
    ),
    *each(
        "unframe",
        "tokens",
        (*_tensors(3, 4, 6)[:-1], torch.ones(4, 6), torch.ones(3, 2, 6)),
        lambda _, v: unframe(v),
    ),
]
