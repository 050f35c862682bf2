"""StreamingLoader on a shard set, without and with verification."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from peer_side import BATCH, Batches, Loaders, Samples, serve

from llgbm_loader import StreamingLoader


def write(samples: Samples, root: Path) -> None:
    """Nothing: ``bench_peers.py`` has packed the set that the samples are taken from."""


def loaders(root: Path, shape: list[int]) -> Loaders:
    """Each epoch is another full permutation, as in training."""
    path = sys.argv[3]

    def streamed(verify: str) -> Callable[[], Batches]:
        loader = StreamingLoader(
            path,
            batch_size=BATCH,
            readers=2,
            verify=verify,
            frame="none",
            dtype=None,
            fields=("tokens", "scales"),
        )
        return lambda: ((batch["tokens"], batch["scales"]) for batch in loader)

    return {f"verify {verify}": streamed(verify) for verify in ("off", "full")}


if __name__ == "__main__":
    serve("llgbm-pack", write, loaders)
