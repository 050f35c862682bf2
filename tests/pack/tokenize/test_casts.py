"""Casts to a dtype with a smaller range."""

from __future__ import annotations

import pytest
import torch

from llgbm_pack.tokenize.casts import Casts
from support.commands import here
from support.tiny_zoo import random_pairs, write_adapter


@pytest.mark.parametrize("across", [0, 1])
def test_pieces_that_vanish_are_counted(across):
    casts = Casts(torch.float16, 4)
    values = torch.ones(2, 10)
    values[:, 4:8] = 1e-9
    values[0, 9] = 1e-9  # beside larger values: not a piece
    tensor = values if across == 0 else values.T.contiguous()
    cast = casts.cast("a", tensor, across=across)
    assert torch.equal(cast, tensor.to(torch.float16))
    assert casts.vanished == {"a": 1}
    casts.begin()
    casts.cast("a", torch.ones_like(tensor), across=across)
    casts.cast("zeros", torch.zeros_like(tensor), across=across)
    assert casts.vanished == {}


def test_what_has_the_dtype_is_itself():
    tensor = torch.full((2, 4), 1e-9)
    casts = Casts(torch.float32, 4)
    assert casts.cast("a", tensor, across=0) is tensor
    assert casts.vanished == {}


def test_a_build_tells_it_by_name_and_strict_stops(tmp_path):
    tiny = random_pairs(0, dtype="float32")
    name = next(key for key in tiny if "lora_B" in key)
    tiny[name] *= 1e-8
    write_adapter(tmp_path / "zoo" / "t" / "tiny", 0, tensors=tiny)
    write_adapter(tmp_path / "zoo" / "t" / "other", 1, dtype="float32")
    build = ("build", tmp_path / "zoo", tmp_path / "out", "--dtype", "float16")
    stopped = here(*build, "--strict")
    assert stopped.code == 1
    assert not (tmp_path / "out" / "shardset.json").exists()
    done = here(*build)
    assert done.code == 0
    assert f"t/tiny: {name}: 3 pieces of tiny weights became zeros in float16" in done.out
    assert "t/other" not in done.out
    assert "became zeros" not in here(*build[:3], "--overwrite").out
