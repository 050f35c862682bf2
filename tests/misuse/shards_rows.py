"""Wrong uses of ``llgbm_shards``."""

from __future__ import annotations

from typing import Any

import numpy as np

from llgbm_shards import HeaderError, Layout, Module, ShardSet, StorageError, check
from misuse.rows import ENDLESS, HUGE, NO_PATHS, BytesPath, Row, World, each, keywords

NO_DIGESTS = ("", "no digest", 3, b"0" * 64, True, "0" * 63, ["0" * 64])
NO_SAMPLES = (
    None,
    0.0,
    1.5,
    True,
    b"x",
    "",
    "no key",
    "\0",
    -1,
    12,
    HUGE,
    ENDLESS,
    [0],
    np.float64(0),
    np.array([0, 1]),
)
NO_SHARDS = (None, 3, "train-999999.tar", "../x", ["train-000000.tar"], b"train-000000.tar")
NO_COLUMNS = (3, "key", b"key", [None], [3], ["key", "absent"], ["\ud800"], [["key"]], {"absent": 1}, True)


def _check(world: World, **wrong: Any) -> Any:
    return check(world.path, **wrong)


def _layout(_: World, **wrong: Any) -> Layout:
    table = (Module(name="q", layer=0, in_features=4, out_features=4, first_token=0, tokens_a=1, tokens_b=1),)
    return Layout(
        **{"dtype": "float32", "rank": 1, "chunk": 4, "token_order": "sorted", "modules": table, **wrong}
    )


ROWS: list[Row] = [
    *each("check", "path", (*NO_PATHS, BytesPath()), lambda _, value: check(value)),
    *each("check", "path", ("/no/such/directory", "x" * 300), lambda _, value: check(value), StorageError),
    *keywords(
        "check",
        {
            "level": (None, 3, "fullest", ["full"], b"full", np.array(["full", "deep"])),
            "sample": (None, 0, -1, 1.1, "5%", True, float("nan"), 1j, np.array([0.5, 0.5]), HUGE, ENDLESS),
            "seed": ("0", 1.5, True, HUGE, -HUGE, ENDLESS),
            "expect_digest": NO_DIGESTS,
            "workers": (0, -1, 1.5, True, "2", HUGE, ENDLESS),
            "progress": (3, "loud"),
        },
        _check,
    ),
    *each("ShardSet", "path", (*NO_PATHS, BytesPath()), lambda _, value: ShardSet(value)),
    *each("ShardSet", "path", ("/no/such/directory",), lambda _, value: ShardSet(value), StorageError),
    *each("ShardSet", "expect_digest", NO_DIGESTS, lambda w, value: ShardSet(w.path, expect_digest=value)),
    *each("ShardSet.number", "sample", NO_SAMPLES, lambda w, value: w.opened.number(value)),
    *each("ShardSet.extents", "sample", NO_SAMPLES, lambda w, value: w.opened.extents(value)),
    *each("ShardSet.read_sample", "sample", NO_SAMPLES, lambda w, value: w.opened.read_sample(value)),
    *each("ShardSet.index", "columns", NO_COLUMNS, lambda w, value: w.opened.index(value)),
    *each("ShardSet.open_shard", "name", NO_SHARDS, lambda w, value: w.opened.open_shard(value).__enter__()),
    *each(
        "ShardSet.shard_extents",
        "shard",
        NO_SHARDS,
        lambda w, value: list(w.opened.shard_extents(value)),
    ),
    *each("ShardSet.read_member", "extent", (None, 3, "x", ()), lambda w, value: w.opened.read_member(value)),
    *keywords(
        "Layout",
        {
            "dtype": ("int8", None, 3, ["float32"]),
            "token_order": ("random", None, ["sorted"]),
            "rank": (0, -1, None, "1", 1.5, True),
            "chunk": (0, -1, None, "1", 1.5, True, 3),
        },
        _layout,
        HeaderError,
    ),
]
