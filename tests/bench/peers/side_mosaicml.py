"""mosaicml-streaming: StreamingDataset on local MDS shards and DataLoader."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peer_side import BATCH, WORKERS, Batches, Loaders, Samples, serve, stacked, tensors
from torch.utils.data import DataLoader


def import_streaming() -> ModuleType:
    """The package needs two names of torchvision to be imported; a torchvision for this torch may not be there."""
    names = (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    )
    stubs: dict[str, Any] = {name: ModuleType(name) for name in names}
    for name, stub in stubs.items():
        stub.__spec__ = ModuleSpec(name, None)  # transformers, which it imports too, asks for one.
    stubs["torchvision.datasets"].VisionDataset = object
    stubs["torchvision.transforms.functional"].to_tensor = None
    sys.modules.update(stubs)
    import streaming

    return streaming


streaming = import_streaming()


def write(samples: Samples, root: Path) -> None:
    """MDS shards of about one batch each, as raw bytes."""
    columns = {"pieces": "bytes", "scales": "bytes"}
    limit = int(samples.bodies[0].stat().st_size * (BATCH + 0.5))
    with streaming.MDSWriter(out=str(root / "mds"), columns=columns, size_limit=limit) as writer:
        for _, body, scales in samples:
            writer.write({"pieces": body.tobytes(), "scales": scales.tobytes()})


def loaders(root: Path, shape: list[int]) -> Loaders:
    """The pipeline of its documentation; decoding without a copy, collation in the workers."""
    streaming.base.util.clean_stale_shared_memory()

    def collate(samples: list[dict[str, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
        return stacked([tensors(sample["pieces"], sample["scales"], shape) for sample in samples])

    def stock(workers: int) -> Callable[[], Batches]:
        dataset = streaming.StreamingDataset(local=str(root / "mds"), shuffle=False, batch_size=BATCH)
        loader = DataLoader(
            dataset,
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
        )
        return lambda: loader

    return {f"{workers} workers": stock(workers) for workers in WORKERS}


if __name__ == "__main__":
    serve("mosaicml-streaming", write, loaders)
