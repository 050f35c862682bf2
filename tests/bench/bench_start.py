"""Start-up: how long each command takes to print its help.

Run with ``python tests/bench/bench_start.py``. The best of eight processes a command is printed, for the machine may be busy.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llgbm_pack.cli.commands import main as program
from support.commands import run

ROUNDS = 8


def best(*args: str, name: str = "llgbm-pack") -> float:
    """Seconds of the quickest round."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        assert run(*args, "--help", program=name).code == 0
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    times = {"llgbm-check": best(name="llgbm-check"), "llgbm-pack": best()}
    times.update({f"llgbm-pack {command}": best(command) for command in sorted(program.commands)})
    for command, seconds in times.items():
        print(f"{command + ' --help':28} {seconds:.2f} s (to reach: 0.5 s)")


if __name__ == "__main__":
    main()
