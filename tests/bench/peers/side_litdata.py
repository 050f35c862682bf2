"""litdata: StreamingDataset on local chunks (memory-mapped by it) and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import litdata
import numpy as np
import torch
from peer_side import BATCH, WORKERS, Batches, Loaders, Samples, serve

Pair = dict[str, torch.Tensor]


def read(paths: tuple[str, str]) -> Pair:
    """A sample as tensors; bfloat16 as its bits, because litdata's tensor serializer goes through numpy."""
    return {
        name: torch.from_numpy(np.load(path)) for name, path in zip(("body", "scales"), paths, strict=True)
    }


def write(samples: Samples, root: Path) -> None:
    """Chunks of one batch each."""
    paths = [(str(path), str(path).replace(".body.", ".scales.")) for path in samples.bodies]
    litdata.optimize(
        fn=read,
        inputs=paths,
        output_dir=str(root),
        chunk_size=BATCH,
        num_workers=1,
        verbose=False,
        start_method="fork",
    )


def loaders(root: Path, shape: list[int]) -> Loaders:
    """litdata's own loader, which collates as torch does."""

    def stock(workers: int) -> Callable[[], Batches]:
        loader = litdata.StreamingDataLoader(
            litdata.StreamingDataset(str(root), shuffle=False, drop_last=False),
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return lambda: ((batch["pieces"].view(torch.bfloat16), batch["scales"]) for batch in loader)

    return {f"{workers} workers": stock(workers) for workers in WORKERS}


if __name__ == "__main__":
    serve("litdata", write, loaders)
