"""Stock webdataset and DataLoader; members are raw bytes, decoded without a copy, batched in the workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import webdataset
from peer_side import BATCH, WORKERS, Batches, Loaders, Samples, serve, stacked, tensors
from torch.utils.data import DataLoader


def write(samples: Samples, root: Path) -> None:
    """Shards of one batch each, so that workers get whole batches."""
    with webdataset.ShardWriter(str(root / "%06d.tar"), maxcount=BATCH, verbose=0) as writer:
        for key, body, scales in samples:
            writer.write({"__key__": key, "body.bin": body.tobytes(), "scales.bin": scales.tobytes()})


def loaders(root: Path, shape: list[int]) -> Loaders:
    """The pipeline of webdataset's documentation."""
    shards = sorted(str(path) for path in root.glob("*.tar"))

    def stock(workers: int) -> Callable[[], Batches]:
        dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        dataset = dataset.map(lambda sample: tensors(sample["body.bin"], sample["scales.bin"], shape))
        dataset = dataset.batched(BATCH, collation_fn=stacked)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        return lambda: loader

    return {f"{workers} workers": stock(workers) for workers in WORKERS}


if __name__ == "__main__":
    serve("webdataset", write, loaders)
