"""megatron-energon: webdataset shards prepared by its own tool, its validation loader (one epoch each time)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron import energon
from peer_side import BATCH, WORKERS, Batches, Loaders, Samples, serve, stacked, tensors
from side_webdataset import write as write_shards


def write(samples: Samples, root: Path) -> None:
    """webdataset's shards and energon's index of them."""
    write_shards(samples, root)
    options = ["--non-interactive", "--no-progress", "--num-workers", "1", "--split-parts", "val:.*"]
    program = Path(sys.executable).parent / "energon"
    kind = ["--sample-type", "CrudeWebdataset"]
    subprocess.run([program, "prepare", root, *options, *kind], check=True, stdin=subprocess.DEVNULL)


class Encoder(energon.DefaultTaskEncoder):
    """Decoding without a copy, collation as torch does it."""

    decoder = None

    def __init__(self, shape: list[int]) -> None:
        super().__init__()

        @energon.stateless
        def cook(sample: Any) -> dict[str, torch.Tensor]:
            return tensors(sample["body.bin"], sample["scales.bin"], shape)

        self.cookers = [energon.Cooker(cook)]

    @energon.stateless
    def encode_sample(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return sample

    def batch(self, samples: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        return stacked(samples)

    def encode_batch(self, batch: Any) -> Any:
        return batch


def loaders(root: Path, shape: list[int]) -> Loaders:
    """energon's plain loader."""

    def stock(workers: int) -> Callable[[], Batches]:
        config = energon.WorkerConfig(rank=0, world_size=1, num_workers=workers)
        dataset = energon.get_val_dataset(
            str(root), split_part="val", worker_config=config, batch_size=BATCH, task_encoder=Encoder(shape)
        )
        loader = energon.get_loader(dataset)
        return lambda: loader

    return {f"{workers} workers": stock(workers) for workers in WORKERS}


if __name__ == "__main__":
    serve("megatron-energon", write, loaders)
