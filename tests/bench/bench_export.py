"""Exporting a zoo of 1.5B-shaped adapters against copying the zoo it gives.

Run with ``python tests/bench/bench_export.py [DIRECTORY]``. Start-up is in the whole commands; what a further adapter takes is
the difference of a large zoo and a small one. The sides alternate, and medians are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_build import make_zoo, seconds

from llgbm_pack import PackOptions, build

SMALL, LARGE, ROUNDS = 8, 40, 5
_PROGRAM = "from llgbm_pack.cli.commands import main; main()"


def commands(root: Path, count: int) -> dict[str, list[str]]:
    """What copies and what exports a zoo of so many adapters, which is made and packed here."""
    zoo, made, out = root / f"zoo{count}", root / f"set{count}", root / "out"
    make_zoo(zoo, count)
    build(PackOptions(zoo=zoo, out=made))
    return {
        "cp -r and sync": ["sh", "-c", f"cp -r {zoo} {out} && sync"],
        "export --all": [sys.executable, "-c", _PROGRAM, "export", str(made), str(out), "--all", "-q"],
    }


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        root = Path(name)
        sides = {count: commands(root, count) for count in (SMALL, LARGE)}
        taken: dict[tuple[int, str], list[float]] = {}
        for _ in range(ROUNDS):
            for count, programs in sides.items():
                for side, command in programs.items():
                    taken.setdefault((count, side), []).append(seconds(command, root / "out"))
        medians = {key: statistics.median(times) for key, times in taken.items()}
        for (count, side), times in taken.items():
            print(
                f"{count} adapters, {side:<15} {medians[count, side]:6.2f} s ({min(times):.2f}-{max(times):.2f})"
            )
        for count in (SMALL, LARGE):
            share = medians[count, "export --all"] / medians[count, "cp -r and sync"]
            print(f"export --all of {count} / copy: {share:.2f}x (to reach: 1.5x)")
        further = {side: medians[LARGE, side] - medians[SMALL, side] for side in sides[SMALL]}
        share = further["export --all"] / further["cp -r and sync"]
        print(f"per further adapter: {share:.2f}x")
        subprocess.run(sides[SMALL]["export --all"], check=True, stdout=subprocess.DEVNULL)
        for path in (root / f"zoo{SMALL}").rglob("*.safetensors"):
            there = root / "out" / path.relative_to(root / f"zoo{SMALL}")
            subprocess.run(["cmp", path, there], check=True)


if __name__ == "__main__":
    main()
