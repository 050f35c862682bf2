"""The full check against plainly reading and digesting the same bytes: one reader, warm cache.

Run with ``python tests/bench/bench_check.py [DIRECTORY]``. The set holds 24 samples of 42 MB, 1 GB in all. Rounds
alternate between the two sides; medians of five are printed, and the ratio of the rates.
"""

from __future__ import annotations

import mmap
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parents[1]))
from llgbm_shards import check
from support.synthetic import small_layout, write_set

SAMPLES, ROUNDS, CHUNK = 24, 5, 1 << 20


def read_and_digest(shards: list[Path]) -> int:
    """BLAKE3 of every byte of the shards, read into one reused, aligned buffer; returns the bytes."""
    buffer = memoryview(mmap.mmap(-1, CHUNK))
    total = 0
    for path in shards:
        digest = blake3()
        fd = os.open(path, os.O_RDONLY)
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
            total += count
        os.close(fd)
    return total


def main() -> None:
    """Print both rates and their ratio."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        layout = small_layout(rank=16, chunk=256, modules=4, tokens=1280)
        made = write_set(Path(directory) / "set", SAMPLES, layout=layout, shard_samples=6)
        shards = [made.path / entry.name for entry in made.record.shards]
        rates: dict[str, list[float]] = {"read and digest": [], "check": []}
        for number in range(ROUNDS + 1):
            for name, run in (
                ("read and digest", lambda: read_and_digest(shards)),
                ("check", lambda: check(made.path, workers=1).bytes_read),
            ):
                start = time.perf_counter()
                total = run()
                if number:  # The first round warms the cache.
                    rates[name].append(total / (time.perf_counter() - start) / 1e9)
        plain, checked = (statistics.median(rates[name]) for name in ("read and digest", "check"))
        print(f"read and digest  {plain:.2f} GB/s")
        print(f"check, 1 reader  {checked:.2f} GB/s")
        print(f"ratio            {checked / plain:.3f} (to reach: 0.9)")


if __name__ == "__main__":
    main()
