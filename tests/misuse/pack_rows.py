"""Wrong uses of ``llgbm_pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llgbm_pack import DeltaCache, LoraTokenizer2D, PackOptions, build, write_adapter
from llgbm_pack.packing.overlay import overlay
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_pack.upkeep.repair_shards import RepairOptions
from llgbm_shards import CheckpointError
from misuse.rows import ENDLESS, HUGE, NO_BOOLS, NO_PATHS, BytesPath, Row, World, each, keywords
from misuse.shards_rows import NO_DIGESTS

_NO_COUNTS = (0, -1, 1.5, True, "1", [1], torch.ones(2))
_NO_TEXTS = (3, b"x", True, ["x"], "\ud800")
_NO_LISTS = (None, 3, "a*", b"a*", [3], [None], ["\ud800"])
_NO_CHOICES = (None, 3, "x", ["auto"], np.array(["auto", "x"]))
_NO_MAPS = (None, 3, "a=b", ["a=b"], [("a",)], [("", "b")], [(1, 2)], [None], [("a", "\ud800")])
_A, _B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def _options(world: World, **wrong: Any) -> PackOptions:
    return PackOptions(**{"zoo": world.root / "zoo", "out": world.root / "out", **wrong})


def _repair(world: World, **wrong: Any) -> RepairOptions:
    return RepairOptions(**{"out": world.path, "zoo": world.root / "zoo", **wrong})


def _overlay(world: World, **wrong: Any) -> OverlayOptions:
    given = {"base": world.path, "out": world.root / "out", "deltas": world.root / "deltas"}
    return OverlayOptions(**{**given, **wrong})


def _pair(a: Any, b: Any) -> dict[str, Any]:
    return {_A: a, _B: b}


def _same(kind: Any) -> dict[str, Any]:
    return _pair(kind(torch.ones(2, 4)), kind(torch.ones(4, 2)))


def _back(world: World, **wrong: Any) -> Any:
    tokenizer = LoraTokenizer2D()
    tokens, scales = tokenizer.tokenize(world.weights)
    return tokenizer.detokenize(**{"tokens": tokens, "scales": scales, "like": world.weights, **wrong})


def _written(world: World, **wrong: Any) -> Any:
    tokens = torch.ones(world.opened.layout.tokens_shape)
    right = {"tokens": tokens, "dest": world.root / "adapter", "like": (world.opened, 0)}
    return write_adapter(**{**right, **wrong})


def _tokenizer(_: World, **wrong: Any) -> LoraTokenizer2D:
    return LoraTokenizer2D(**wrong)


_NO_WEIGHTS = (
    None,
    3,
    "weights",
    [],
    [_A, _B],
    {3: torch.ones(2, 4)},
    {_A: None, _B: None},
    {None: torch.ones(2, 4)},
)
_NO_MATRICES = (
    {},
    {"model.layers.0.weight": torch.ones(2, 4)},
    {_A: torch.ones(2, 4)},
    _same(torch.Tensor.int),
    _same(torch.Tensor.bool),
    _same(torch.Tensor.double),
    _same(lambda tensor: tensor.to(torch.complex64)),
    _same(torch.Tensor.to_sparse),
    _same(lambda tensor: tensor.to("meta")),
    _same(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    _same(lambda tensor: torch.nested.nested_tensor([tensor], layout=torch.jagged)),
    _pair(torch.ones(2, 4), torch.ones(4, 2).bfloat16()),
    _pair(torch.ones(2, 4), torch.ones(4, 3)),
    _pair(torch.ones(0, 4), torch.ones(4, 0)),
    _pair(torch.ones(2, 4, 1), torch.ones(4, 2)),
    _pair(torch.full((2, 4), torch.nan), torch.ones(4, 2)),
    {"\ud800": torch.ones(2, 4)},
)
_NO_TOKENS = (
    None,
    3,
    "x",
    [],
    np.ones((3, 4, 6)),
    torch.ones(3),
    torch.ones(0, 0, 0),
    torch.ones(3, 4, 6).to_sparse(),
)


def _spoilt(change: Any) -> Any:
    def call(world: World, **wrong: Any) -> Any:
        tokens, scales = LoraTokenizer2D().tokenize(world.weights)
        name = next(iter(wrong))
        spoilt = change[wrong[name]]({"tokens": tokens, "scales": scales}[name])
        return _back(world, **{name: spoilt})

    return call


_SPOIL = {
    "int": torch.Tensor.int,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bool": torch.Tensor.bool,
    "sparse": torch.Tensor.to_sparse,
    "meta": lambda tensor: tensor.to("meta"),
    "numpy": torch.Tensor.numpy,
    "shorter": lambda tensor: tensor[:-1],
    "one more": lambda tensor: tensor[None],
}

ROWS: list[Row] = [
    *each("build", "options", (None, 3, "zoo", {}, Path("zoo")), lambda _, value: build(value)),
    *each("build", "progress", (3, "loud", print), lambda w, value: build(_options(w), progress=value)),
    *keywords(
        "PackOptions",
        {
            "zoo": (*NO_PATHS, BytesPath()),
            "out": (*NO_PATHS, BytesPath()),
            "deltas": (*NO_PATHS[1:], BytesPath()),
            "texts": (*NO_PATHS[1:], BytesPath()),
            "text_tokenizer": (*_NO_TEXTS[:-1], "", "a\0b"),
            "forms": (*_NO_LISTS, (), ["prompt", "prompt"], ["question"]),
            "joiner": (None, *_NO_TEXTS),
            "missing_delta": _NO_CHOICES,
            "maps": _NO_MAPS,
            "token_order": _NO_CHOICES,
            "dtype": _NO_CHOICES,
            "rank": (*_NO_COUNTS, HUGE, ENDLESS),
            "chunk": (*_NO_COUNTS, HUGE, ENDLESS),
            "alpha": (0, -1, "1", True, float("nan"), float("inf"), 1j, ENDLESS),
            "max_texts": (*_NO_COUNTS, HUGE, ENDLESS),
            "split": (None, -0.1, 1, "0.1", True, float("nan"), 1j),
            "split_by": _NO_CHOICES,
            "include": _NO_LISTS,
            "exclude": _NO_LISTS,
            "limit": (*_NO_COUNTS, HUGE, ENDLESS),
            "shard_bytes": (None, *_NO_COUNTS, HUGE, ENDLESS),
            "parity": (None, *_NO_COUNTS[1:], HUGE, ENDLESS, 1025),
            "seed": (None, 0.5, True, "0", HUGE, -HUGE, ENDLESS),
            "workers": (*_NO_COUNTS, HUGE, ENDLESS, 1025),
            "strict": NO_BOOLS,
            "overwrite": NO_BOOLS,
        },
        _options,
    ),
    *keywords(
        "RepairOptions",
        {
            "out": (*NO_PATHS, BytesPath()),
            "zoo": (*NO_PATHS[1:], BytesPath()),
            "base": (*NO_PATHS[1:], BytesPath()),
            "deltas": NO_PATHS[1:],
            "texts": NO_PATHS[1:],
            "text_tokenizer": (*_NO_TEXTS[:-1], "a\0b"),
            "maps": _NO_MAPS,
            "expect_digest": NO_DIGESTS,
        },
        _repair,
    ),
    *each("overlay", "options", (None, 3, "set", {}, Path("set")), lambda _, value: overlay(value)),
    *each("overlay", "progress", (3, "loud", print), lambda w, value: overlay(_overlay(w), progress=value)),
    *keywords(
        "OverlayOptions",
        {
            "base": (*NO_PATHS, BytesPath()),
            "out": (*NO_PATHS, BytesPath()),
            "deltas": (*NO_PATHS[1:], BytesPath()),
            "texts": (*NO_PATHS[1:], BytesPath()),
            "text_tokenizer": (*_NO_TEXTS[:-1], "", "a\0b"),
            "forms": (*_NO_LISTS[1:], (), ["prompt", "prompt"], ["question"]),
            "joiner": _NO_TEXTS,
            "missing_delta": (*_NO_CHOICES, "skip"),
            "maps": _NO_MAPS,
            "workers": (None, *_NO_COUNTS, HUGE, ENDLESS, 1025),
            "strict": NO_BOOLS,
            "overwrite": NO_BOOLS,
        },
        _overlay,
    ),
    *keywords(
        "LoraTokenizer2D",
        {
            "order": _NO_CHOICES,
            "frame": _NO_CHOICES,
            "zero_std": _NO_CHOICES,
            "chunk": (*_NO_COUNTS, HUGE, ENDLESS),
            "rank": (*_NO_COUNTS, HUGE, ENDLESS),
        },
        _tokenizer,
    ),
    *each("LoraTokenizer2D.tokenize", "weights", _NO_WEIGHTS, lambda _, v: LoraTokenizer2D().tokenize(v)),
    *each(
        "LoraTokenizer2D.tokenize",
        "weights",
        (_same(torch.Tensor.numpy),),
        lambda _, v: LoraTokenizer2D().tokenize(v),
    ),
    *each(
        "LoraTokenizer2D.tokenize",
        "weights",
        _NO_MATRICES,
        lambda _, v: LoraTokenizer2D().tokenize(v),
        CheckpointError,
    ),
    *each("LoraTokenizer2D.layout", "weights", _NO_WEIGHTS, lambda _, v: LoraTokenizer2D().layout(v)),
    *each(
        "LoraTokenizer2D.layout",
        "weights",
        _NO_MATRICES[:11],
        lambda _, v: LoraTokenizer2D().layout(v),
        CheckpointError,
    ),
    *keywords("LoraTokenizer2D.detokenize", {"tokens": _NO_TOKENS, "scales": _NO_TOKENS[1:]}, _back),
    *keywords("LoraTokenizer2D.detokenize", {"tokens": _SPOIL, "scales": _SPOIL}, _spoilt(_SPOIL)),
    *keywords("LoraTokenizer2D.detokenize", {"like": _NO_WEIGHTS}, _back),
    *keywords("LoraTokenizer2D.detokenize", {"like": _NO_MATRICES[:11]}, _back, CheckpointError),
    *keywords(
        "write_adapter",
        {
            "tokens": (*_NO_TOKENS, torch.ones(3, 4, 6), torch.ones(3, 4, 6, device="meta")),
            "dest": (*NO_PATHS, BytesPath()),
            "like": (None, 3, "set", b"x", (), ("set",), (None, 0), (3, 0), {}, ("a\0b", 0)),
        },
        _written,
    ),
    *each(
        "write_adapter",
        "like's sample",
        (None, "x", -1, 99, True, 0.5, HUGE, ENDLESS),
        lambda w, v: _written(w, like=(w.opened, v)),
    ),
    # DeltaCache has tests of its own; here only that it is refused at the entrance too.
    *each("DeltaCache", "cache_dir", (None, 3, b"x"), lambda _, value: DeltaCache(value)),
]
