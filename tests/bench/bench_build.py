"""Building a set of 1.5B-shaped adapters against copying them; bytes read; memory of a worker.

Run with ``python tests/bench/bench_build.py [DIRECTORY]``. Start-up is taken out by timing a small and a large zoo
and dividing the difference; the sides alternate, and medians are printed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_tokenize import make_pairs
from safetensors.torch import save_file

#: A shard holds 7 of them, so that 2 workers have 1 and 7 shards each: no worker waits long for the other.
SMALL, LARGE, ROUNDS = 14, 98, 5
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": "Qwen/Qwen2.5-1.5B"}
SET = ["--shard-bytes", "256MiB", "-q", "--format", "json"]
MEASURE = """
import json, sys
from pathlib import Path
import llgbm_pack.packing.build, llgbm_pack.packing.shard
from llgbm_pack import PackOptions, build
def field(path, name):
    return next(int(line.split()[1]) for line in open(path) if line.startswith(name))
rss, read = field("/proc/self/status", "VmRSS"), field("/proc/self/io", "rchar")
build(PackOptions(zoo=Path(sys.argv[1]), out=Path(sys.argv[2]), workers=1, shard_bytes=256 << 20))
print(json.dumps([field("/proc/self/status", "VmHWM") - rss, field("/proc/self/io", "rchar") - read]))
"""


def make_zoo(root: Path, count: int) -> int:
    """Write ``count`` adapters of 37 MB; returns their bytes."""
    pairs = make_pairs()
    for number in range(count):
        folder = root / "task" / f"run{number}"
        folder.mkdir(parents=True)
        weights = {}
        for name, (a, b) in pairs.items():
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.roll(a, number)
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.roll(b, number)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        (folder / "prompts.json").write_text(
            json.dumps({"prompts": [f"prompt {number}"], "answers": ["yes"]})
        )
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def seconds(command: list[str], out: Path) -> float:
    """Wall time of a command that writes ``out``, which is removed before and after."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    taken = time.monotonic() - start
    shutil.rmtree(out, ignore_errors=True)
    return taken


def further(taken: dict[int, list[float]]) -> tuple[float, str]:
    """Milliseconds a further adapter takes: medians, and what the fastest and slowest large runs would give."""
    start = statistics.median(taken[SMALL])
    each = [(seconds - start) / (LARGE - SMALL) * 1000 for seconds in sorted(taken[LARGE])]
    return statistics.median(each), f"{each[0]:.0f}-{each[-1]:.0f}"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        root = Path(name)
        zoos = {count: root / f"zoo{count}" for count in (SMALL, LARGE)}
        sizes = {count: make_zoo(zoo, count) for count, zoo in zoos.items()}
        program = str(Path(sys.executable).parent / "llgbm-pack")
        build = [program, "build", "{zoo}", "{out}", "--workers", "2", *SET]
        copy = ["sh", "-c", "cp -r {zoo} {out} && sync"]
        builds: dict[int, list[float]] = {SMALL: [], LARGE: []}
        copies: dict[int, list[float]] = {SMALL: [], LARGE: []}
        for _ in range(ROUNDS):
            for count, zoo in zoos.items():
                for taken, command in ((copies, copy), (builds, build)):
                    run = [part.format(zoo=zoo, out=root / "out") for part in command]
                    taken[count].append(seconds(run, root / "out"))
        (built, built_spread), (copied, copied_spread) = further(builds), further(copies)
        print(
            f"build, 2 workers, per further 1.5B adapter: {built:.0f} ms ({built_spread}); "
            f"cp -r and sync: {copied:.0f} ms ({copied_spread}); {built / copied:.2f}x (to reach: 1.5x)"
        )
        figures = {}
        for count, zoo in zoos.items():
            run = [sys.executable, "-c", MEASURE, str(zoo), str(root / f"one{count}")]
            figures[count] = json.loads(
                subprocess.run(run, check=True, capture_output=True, text=True).stdout
            )
        read = (figures[LARGE][1] - figures[SMALL][1]) / (sizes[LARGE] - sizes[SMALL])
        sample = sizes[LARGE] / LARGE
        print(f"bytes read of the zoo: {read:.4f} of its size (to reach: 1.01)")
        print(
            f"memory of a worker: {figures[LARGE][0] * 1024 / sample:.2f} samples plus imports (to reach: 4)"
        )


if __name__ == "__main__":
    main()
