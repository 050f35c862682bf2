"""What all sides share: the samples, the loop that is timed, and the answers to ``bench_peers.py``.

A side runs as ``python side_NAME.py SAMPLES ROOT`` in its own environment: it writes its format into ROOT, says which
ways of loading it has, and then runs one epoch for each line of its input. Answers are lines of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 4
WORKERS = (0, 1, 2)
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Loaders = dict[str, Callable[[], Batches]]


class Samples:
    """The samples as plain files: body (N, r, chunk) as the int16 bits of bfloat16, scales (N, 2) float32."""

    def __init__(self, root: Path) -> None:
        self.bodies = sorted(root.glob("*.body.npy"))
        self.shape = list(np.load(self.bodies[0], mmap_mode="r").shape)

    def __len__(self) -> int:
        return len(self.bodies)

    def __iter__(self) -> Iterator[tuple[str, Any, Any]]:
        for path in self.bodies:
            key = path.name.partition(".")[0]
            yield key, np.load(path), np.load(path.with_name(f"{key}.scales.npy"))


def tensors(body: bytes, scales: bytes, shape: list[int]) -> dict[str, torch.Tensor]:
    """Tensors on the bytes of a sample, without a copy: the cheapest decoding there is."""
    return {
        "pieces": torch.frombuffer(body, dtype=torch.bfloat16).view(shape),
        "scales": torch.frombuffer(scales, dtype=torch.float32).view(shape[0], 2),
    }


def stacked(samples: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own collation, which stacks right into shared memory inside a DataLoader's worker."""
    batch = torch.utils.data.default_collate(samples)
    return batch["pieces"], batch["scales"]


def epoch(batches: Batches, check: bool) -> dict[str, Any]:
    """Take all batches as a training step would: every page of every batch is touched.

    Args:
        batches: What a loader gives.
        check: Also digest every sample, outside of what is timed for the figures.
    """
    count, nbytes, digests = 0, 0, []
    start = time.monotonic()
    for body, scales in batches:
        if body.dtype != torch.bfloat16 or scales.dtype != torch.float32 or not body.is_contiguous():
            raise TypeError(f"not a batch: {body.dtype}, {scales.dtype}")
        body[:, :, ::8, 0].float().sum()  # A row is 512 bytes, so this is one element of each 4 KiB.
        count += len(body)
        nbytes += body.nbytes + scales.nbytes
        if check:
            for row in range(len(body)):
                digest = hashlib.blake2b(body[row].view(torch.int16).numpy(), digest_size=8)
                digest.update(scales[row].contiguous().numpy())
                digests.append(digest.hexdigest())
    return {
        "seconds": time.monotonic() - start,
        "samples": count,
        "nbytes": nbytes,
        "digests": sorted(digests),
    }


def serve(
    package: str, write: Callable[[Samples, Path], None], loaders: Callable[[Path, list[int]], Loaders]
) -> None:
    """Write the format, then answer until the input ends. What libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    samples, root = Samples(Path(sys.argv[1])), Path(sys.argv[2])
    root.mkdir()
    write(samples, root)
    sides = loaders(root, samples.shape)
    answer(sides=list(sides), version=version(package))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(**epoch(sides[request["side"]](), request["check"]))
        except Exception as error:  # noqa: BLE001  # Whatever fails in a peer is reported in its row.
            answer(error=f"{type(error).__name__}: {error}")
