"""Stock webdataset reads the same shards and gives the same samples."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from llgbm_loader import StreamingLoader
from support.synthetic import write_set

webdataset = pytest.importorskip("webdataset")


def test_stock_webdataset_gives_the_same_samples(tmp_path):
    from safetensors.torch import load

    made = write_set(tmp_path / "set", 11, shard_samples=4)
    urls = sorted(str(path) for path in made.path.glob("train-*.tar"))
    stock = webdataset.WebDataset(urls, shardshuffle=False)
    loader = StreamingLoader(
        made.path, batch_size=1, shuffle=False, fields=["weights", "scales", "condition", "delta"], dtype=None
    )
    count = 0
    for sample, batch in zip(stock, loader, strict=True):
        assert sample["__key__"] == batch["keys"][0]
        pieces = load(sample["pieces.safetensors"])["pieces"]
        assert torch.equal(pieces.view(torch.int16), batch["weights"][0].view(torch.int16))
        assert np.array_equal(np.load(io.BytesIO(sample["scales.npy"])), batch["scales"][0])
        assert np.array_equal(np.load(io.BytesIO(sample["delta.npy"])), batch["delta"][0])
        assert json.loads(sample["json"])["has_delta"] == bool(batch["has_delta"][0])
        count += 1
    assert count == 11
