"""``make stress``: the loader on a machine kept busy, with consumers that keep batches, each run under a watchdog.

Every run is a process of its own, and says how far it is; one that says nothing for a minute hangs: its threads'
stacks are printed and the command fails.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stress.consumer import KEEPING
from support.leaks import child_env
from support.synthetic import write_set

_SAMPLES = 1000
_READERS = range(1, 9)
#: Ends with the process that started it, however that ends.
_BURN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the processor's cores busy with other processes."""
    burning = [subprocess.Popen([sys.executable, "-c", _BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def one(path: Path, keep: str, readers: int, batches: int, seed: int) -> bool:
    """One run; says whether it came to its end."""
    draw = random.Random(seed)
    options = [readers, draw.randint(1, 4), draw.randint(1, 8), draw.choice(["1e-6", "5e-3"])]
    began = time.perf_counter()
    command = [sys.executable, "-m", "stress.consumer", path, keep, batches, *options]
    done = subprocess.run(map(str, command), check=False, capture_output=True, text=True, env=child_env())
    took = time.perf_counter() - began
    facts = "readers {}, prefetch {}, batch size {}, switch interval {}".format(*options)
    verdict = "whole" if done.returncode == 0 else f"FAILED ({done.returncode})"
    print(f"keeps {keep}: {batches} batches, {facts}: {verdict} in {took:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout[-200:], done.stderr[-8000:], flush=True)
    return done.returncode == 0


def main() -> int:
    """Run all kinds of consumers with all numbers of readers."""
    parser = argparse.ArgumentParser(prog="stress", description=__doc__)
    parser.add_argument("--batches", type=int, default=50_000, help="of each of the four kinds of consumer")
    parser.add_argument("--busy", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, busy(args.busy):
        made = write_set(Path(root) / "set", _SAMPLES, texts=False, delta_width=0, shard_samples=100)
        runs = list(itertools.product(KEEPING, _READERS))
        each = -(-args.batches // len(_READERS))
        whole = [one(made.path, *run, each, args.seed + at) for at, run in enumerate(runs)]
    print(f"{sum(whole)} of {len(whole)} runs came to their end, {sum(whole) * each} batches")
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
