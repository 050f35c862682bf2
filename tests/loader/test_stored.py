"""Members that stand next to each other in the tar are read at once, others by themselves; batches are the same."""

from __future__ import annotations

import torch

from llgbm_loader import StreamingLoader
from support.synthetic import write_set


def test_members_that_stand_apart(tmp_path):
    path = write_set(tmp_path / "set", 6).path
    whole = next(iter(StreamingLoader(path, shuffle=False, batch_size=6)))
    apart = next(iter(StreamingLoader(path, shuffle=False, batch_size=6, fields=("scales", "delta"))))
    assert apart["keys"] == whole["keys"]
    assert apart.keys() < whole.keys()
    for name in ("scales", "delta"):
        assert torch.equal(apart[name], whole[name])
