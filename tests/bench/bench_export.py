"""Exporting a zoo of 1.5B-shaped adapters against copying the zoo it gives.

Run with ``python tests/bench/bench_export.py [DIRECTORY]``. Start-up is in it; the sides alternate, and medians are printed.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_build import make_zoo, seconds

from llgbm_pack import PackOptions, build

COUNT, ROUNDS = 12, 5
_PROGRAM = "from llgbm_pack.cli.commands import main; main()"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        root = Path(name)
        size = make_zoo(root / "zoo", COUNT)
        build(PackOptions(zoo=root / "zoo", out=root / "set"))
        out = root / "out"
        copy = ["sh", "-c", f"cp -r {root / 'zoo'} {out} && sync"]
        export = [sys.executable, "-c", _PROGRAM, "export", str(root / "set"), str(out), "--all", "-q"]
        copies, exports = [], []
        for _ in range(ROUNDS):
            copies.append(seconds(copy, out))
            exports.append(seconds(export, out))
        copied, exported = statistics.median(copies), statistics.median(exports)
        print(
            f"export --all of {COUNT} 1.5B adapters, {size >> 20} MiB: {exported:.2f} s ({min(exports):.2f}-{max(exports):.2f}); "
            f"cp -r and sync: {copied:.2f} s ({min(copies):.2f}-{max(copies):.2f}); {exported / copied:.2f}x (to reach: 1.5x)"
        )
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        for path in (root / "zoo").rglob("*.safetensors"):
            there = out / path.relative_to(root / "zoo")
            subprocess.run(["cmp", path, there], check=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
