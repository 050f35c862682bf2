"""What parity costs: time, bytes and memory of packing with --parity 8 and without, sides alternating, medians.

Run with ``python tests/bench/bench_parity.py [DIRECTORY]``. Both sides pack the same 1.5B-shaped adapters with one worker,
in one shard, so that each group has one or two samples.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_build import make_zoo

COUNT, PARITY, ROUNDS = 12, 8, 5
PACK = """
import json, resource, sys, time
from pathlib import Path
import llgbm_pack.packing.build, llgbm_pack.packing.shard
from llgbm_pack import PackOptions, build
options = PackOptions(zoo=Path(sys.argv[1]), out=Path(sys.argv[2]), workers=1, parity=int(sys.argv[3]))
start = time.monotonic()
report = build(options)
seconds = time.monotonic() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([seconds, report.packing_seconds, report.set_bytes, report.parity_bytes, peak]))
"""


def pack(zoo: Path, groups: int) -> list[float]:
    """Seconds of the build and of packing alone, bytes of shards and of parity, peak memory; in a process of its own."""
    with tempfile.TemporaryDirectory(dir=zoo.parent) as out:
        command = [sys.executable, "-c", PACK, str(zoo), f"{out}/set", str(groups)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken: list[float] = json.loads(said)
    return taken


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        zoo = Path(name) / "zoo"
        make_zoo(zoo, COUNT)
        pack(zoo, PARITY)  # The page cache is warm from here on.
        taken: dict[int, list[list[float]]] = {0: [], PARITY: []}
        for _ in range(ROUNDS):
            for groups, rows in taken.items():
                rows.append(pack(zoo, groups))
    medians = {
        groups: [statistics.median(column) for column in zip(*rows, strict=True)]
        for groups, rows in taken.items()
    }
    (plain, _, shards, _, memory), (whole, _, _, parity, more) = medians[0], medians[PARITY]
    ranges = [
        f"{min(row[0] for row in rows):.2f}-{max(row[0] for row in rows):.2f}" for rows in taken.values()
    ]
    print(
        f"packing {COUNT} adapters of 1.5B, 1 worker: {plain:.2f} s ({ranges[0]}), with --parity {PARITY} {whole:.2f} s "
        f"({ranges[1]}); {whole / plain:.2f}x"
    )
    rate = parity / max(whole - plain, 1e-3) / 1e9
    print(
        f"bytes: shards {shards / 1e6:.0f} MB, parity {parity / 1e6:.0f} MB ({parity / shards:.2f} of them)"
    )
    print(
        f"each further byte of parity at {rate:.1f} GB/s; memory of the worker: {memory / 1e6:.0f} and {more / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
