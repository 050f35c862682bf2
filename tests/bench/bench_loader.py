"""The loader against plain reads of the same bytes and against stock webdataset, warm, on the CPU.

Run with ``python tests/bench/bench_loader.py [DIRECTORY]``. The set holds 1.5B-shaped samples (38 MB each). Every side
reads every sample once a round; rounds alternate between the sides, and medians are printed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import webdataset
from bench_build import make_zoo

from llgbm_loader import StreamingLoader, reader
from llgbm_loader.hostframe import HostFramer
from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_shards.shardset import ShardSet

SAMPLES, BATCH, THREADS, ROUNDS = 40, 4, 2, 3


def make_set(root: Path) -> Path:
    """Pack adapters with deltas of width 1536."""
    make_zoo(root / "zoo", SAMPLES)
    cache = DeltaCache(root / "deltas")
    random = np.random.default_rng(0)
    paths = [f"zoo/task/run{number}" for number in range(SAMPLES)]
    cache.save_deltas({path: random.standard_normal(1536, np.float32) for path in paths})
    build(PackOptions(zoo=root / "zoo", out=root / "set", deltas=root / "deltas", shard_bytes=300 << 20))
    return root / "set"


def plain_reads(path: Path) -> Callable[[], int]:
    """``readinto`` of the pieces into reused buffers: as many threads as the loader has readers, and as many
    buffers as it has rows in flight, since a single one a thread would stay in the cache and be no memory at all."""
    opened = ShardSet(path)
    members = [opened.extents(number)[0] for number in range(len(opened))]
    rows = BATCH * 3 // THREADS
    buffers = [
        [memoryview(torch.zeros(members[0].size, dtype=torch.uint8).numpy()) for _ in range(rows)]
        for _ in range(THREADS)
    ]

    def read(thread: int) -> int:
        done = 0
        for number, pieces in enumerate(members[thread::THREADS]):
            with (path / pieces.shard).open("rb", buffering=0) as file:
                file.seek(pieces.offset)
                done += file.readinto(buffers[thread][number % rows]) == pieces.size
        return done

    pool = ThreadPoolExecutor(THREADS)
    return lambda: sum(pool.map(read, range(THREADS)))


def streamed(path: Path, **options: object) -> Callable[[], int]:
    """One epoch of the loader; every batch is touched as a training step would."""
    loader = StreamingLoader(str(path), batch_size=BATCH, readers=THREADS, **options)
    epoch = iter(range(1_000_000))

    def run() -> int:
        loader.set_epoch(next(epoch))
        return sum(int(batch["valid"].sum()) for batch in loader)

    return run


class FramesOnly(HostFramer):
    """A framer that takes the stored pieces for the body: what a loader of stored bodies would do."""

    def finish(self, first: int, block: np.ndarray) -> None:
        body = torch.from_numpy(block.view(f"<i{block.itemsize}")).view(self._plan.stored_dtype)
        part = slice(first, first + len(block))
        self._write(self._tokens[part], body, part, None)


def framed_only(path: Path) -> Callable[[], int]:
    """One epoch of the loader, with the frame and without the arithmetic of bodies."""
    run = streamed(path)

    def without() -> int:
        with mock.patch.object(reader, "HostFramer", FramesOnly):
            return run()

    return without


def stock(path: Path, workers: int) -> Callable[[], int]:
    """webdataset and DataLoader as their documentation shows, safetensors decoded by its own library."""
    from safetensors.torch import load

    def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, str]:
        return load(sample["pieces.safetensors"])["pieces"], sample["__key__"]

    shards = [str(shard) for shard in sorted(path.glob("train-*.tar"))]
    dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(decode)
    loader = torch.utils.data.DataLoader(
        dataset.batched(BATCH, partial=True), batch_size=None, num_workers=workers
    )
    return lambda: sum(len(keys) for _, keys in loader)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        path = make_set(Path(name))
        as_stored = {"fields": ("weights", "scales"), "view": "pieces", "dtype": None}
        sides: dict[str, Callable[[], int]] = {
            "plain reads": plain_reads(path),
            "pieces, verify off": streamed(path, verify="off", **as_stored),
            "pieces, verify full": streamed(path, verify="full", **as_stored),
            "dnd frame, float32": streamed(path),
            "dnd frame of stored": framed_only(path),
            **{f"webdataset, {workers} workers": stock(path, workers) for workers in (0, 1, 2)},
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for round_number in range(ROUNDS + 1):
            for side, run in sides.items():
                start = time.monotonic()
                count = run()
                if count != SAMPLES:
                    raise SystemExit(f"{side}: {count} of {SAMPLES} samples")
                if round_number:
                    rates[side].append(count / (time.monotonic() - start))
        medians = {side: statistics.median(found) for side, found in rates.items()}
        for side, found in rates.items():
            print(f"{side:<24} {medians[side]:7.1f} samples/s ({min(found):.1f}-{max(found):.1f})")
        best = max(rate for side, rate in medians.items() if side.startswith("webdataset"))
        print(
            f"loader / plain reads: {medians['pieces, verify off'] / medians['plain reads']:.2f} (to reach: 0.9)"
        )
        print(
            f"loader / webdataset: {medians['pieces, verify off'] / best:.1f}x, "
            f"verified {medians['pieces, verify full'] / best:.1f}x (to reach: 15x, 10x)"
        )
        share = medians["dnd frame, float32"] / medians["dnd frame of stored"]
        print(f"dnd frame / of stored bodies: {share:.2f} (to reach: 0.6)")
        deltas = StreamingLoader(str(path), batch_size=BATCH, fields=("delta",))
        list(deltas)
        share = deltas.stats().bytes_read / sum(shard.stat().st_size for shard in path.glob("*.tar"))
        print(f"delta-only epoch: {share:.4%} of the set's bytes (to reach: under 0.1 %)")


if __name__ == "__main__":
    main()
