"""Opening a large set: time, and memory beyond the imports.

Run with ``python tests/bench/bench_open.py``. Of 1,000,000 samples the first batch is planned: only the index and the
commit record are made, no body is read. Of 10,000 small samples it is read.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from blake3 import blake3

from llgbm_pack.tokenize.module_table import make_layout
from llgbm_shards.canonical import blake3_hex
from llgbm_shards.index import encode_index
from llgbm_shards.members import fixed_sizes
from llgbm_shards.record import CommitRecord, FileEntry, ShardEntry
from llgbm_shards.ustar import BLOCK, padded

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.synthetic import write_set

SAMPLES, PER_SHARD, ROUNDS = 1_000_000, 25, 3
READ = 10_000
MEMBERS = ("body", "scales", "delta", "json")
MEASURE = """
import json, sys, time
import llgbm_loader.stream, torch, pyarrow.parquet
def field(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
from llgbm_loader import StreamingLoader
before, start = field("VmRSS"), time.monotonic()
loader = StreamingLoader(sys.argv[1], batch_size=8)
if sys.argv[2] == "plan":
    loader.pipeline[0]._order(0)
else:
    next(iter(loader))
print(json.dumps([time.monotonic() - start, (field("VmHWM") - before) / 1024]))
"""


def make_set(path: Path) -> None:
    """Write an index and a record of as many samples as a large lab has."""
    widths = {f"model.layers.{layer}.self_attn.q_proj": (16, 1536, 1536) for layer in range(28)}
    layout = make_layout(widths, dtype="bfloat16")
    sizes = {**fixed_sizes(layout, 1536), "json": 2000}
    numbers = np.arange(SAMPLES)
    shards = [f"train-{number:06d}.tar" for number in range(SAMPLES // PER_SHARD)]
    sample_bytes = sum(BLOCK + padded(sizes[member]) for member in MEMBERS)
    rows: dict[str, object] = {
        "key": [f"task-run{number}-{blake3(b'%d' % number).hexdigest()[:8]}" for number in range(SAMPLES)],
        "split": ["train"] * SAMPLES,
        "shard": [shards[number // PER_SHARD] for number in range(SAMPLES)],
        "offset": numbers % PER_SHARD * sample_bytes,
        "checkpoint": [f"task/run{number}" for number in range(SAMPLES)],
        "task": [f"task{number % 50}" for number in range(SAMPLES)],
        "base_model": ["Qwen/Qwen2.5-1.5B"] * SAMPLES,
        "rank": np.full(SAMPLES, 16, np.int32),
        "has_delta": np.ones(SAMPLES, bool),
        "delta_norm": numbers / 7.0,
    }
    random = np.random.default_rng(0)
    for member in MEMBERS:
        rows[f"{member}.size"] = np.full(SAMPLES, sizes[member])
        digests = random.bytes(32 * SAMPLES)
        rows[f"{member}.blake3"] = [digests[start : start + 32] for start in range(0, len(digests), 32)]
        rows[f"{member}.xxh3_64"] = random.integers(0, 2**63, SAMPLES, dtype=np.uint64)
    data = encode_index(rows, MEMBERS)
    record = CommitRecord(
        layout=layout,
        members=MEMBERS,
        texts={"forms": []},
        delta_width=1536,
        options={},
        shards=tuple(
            ShardEntry(
                name=name,
                split="train",
                samples=PER_SHARD,
                size=PER_SHARD * sample_bytes + 1024,
                digest=blake3_hex(name.encode()),
            )
            for name in shards
        ),
        files=(FileEntry(name="index.parquet", size=len(data), digest=blake3_hex(data)),),
    )
    (path / "index.parquet").write_bytes(data)
    (path / "shardset.json").write_bytes(record.to_bytes())


def measure(path: Path, what: str) -> tuple[float, float]:
    """Seconds and MiB of opening and then ``plan`` or ``read``, medians of processes of their own."""
    run = [sys.executable, "-c", MEASURE, str(path), what]
    found = [
        json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
        for _ in range(ROUNDS)
    ]
    return statistics.median(row[0] for row in found), statistics.median(row[1] for row in found)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        make_set(Path(name))
        seconds, memory = measure(Path(name), "plan")
        print(
            f"open {SAMPLES:,} samples, first batch planned: {seconds:.2f} s, {memory:.0f} MiB (to reach: 2 s, 600 MB)"
        )
    with tempfile.TemporaryDirectory() as name:
        write_set(Path(name), READ, shard_samples=PER_SHARD)
        seconds, memory = measure(Path(name), "read")
        print(f"open {READ:,} samples, first batch read: {seconds:.2f} s, {memory:.0f} MiB (to reach: 1 s)")


if __name__ == "__main__":
    main()
