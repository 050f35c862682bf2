"""``python -m fuzz --seconds 60``: every target under atheris for its share of the time, and a table of the outcomes."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fuzz.seeds import make_seeds
from fuzz.targets import TARGETS

#: Seconds an input may take; the longest are some KiB.
_SLOW_S = 10
_LONGEST = 1 << 16
_MOST_MEMORY_MIB = 2048
#: Seconds for a process to import everything with instruments, and to end.
_MARGIN_S = 90
_WORDS = re.compile(rb'"[^"\\]{1,40}"|[a-z_]{3,20}')


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one target: inputs run, of them a second, inputs kept because they reached new code, findings."""

    runs: int
    rate: int
    kept: int
    findings: tuple[Path, ...]
    log: str


def _fuzz(name: str, root: Path, save: Path, seconds: float) -> Outcome:
    """Run one target in a process of its own; its findings are moved to ``save``."""
    home = root / name.replace(" ", "-").replace("'", "")
    found = home / "found"
    found.mkdir()
    command = [
        sys.executable, "-m", "fuzz.engine", name, str(found), f"-max_total_time={max(1, round(seconds))}",
        f"-timeout={_SLOW_S}", f"-rss_limit_mb={_MOST_MEMORY_MIB}", f"-max_len={_LONGEST}", "-print_final_stats=1",
        f"-dict={home / 'words'}", str(home / "corpus"),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + _MARGIN_S,
            check=False,
        )
        code, log = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, log = 1, f"{(error.stdout or b'').decode(errors='replace')}\nnot ended in its time"
    moved = tuple(_keep(path, home.name, save) for path in sorted(found.iterdir()))
    if code and not moved:
        raise RuntimeError(f"the fuzzer of {name!r} itself failed:\n{log[-3000:]}")
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", log))
    runs, rate = int(stats.get("number_of_executed_units", 0)), int(stats.get("average_exec_per_sec", 0))
    return Outcome(runs=runs, rate=rate, kept=int(stats.get("new_units_added", 0)), findings=moved, log=log)


def _keep(path: Path, target: str, save: Path) -> Path:
    save.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path, save / f"{target}-{path.name}"))


def _prepare(root: Path, names: Sequence[str]) -> None:
    """A corpus and a list of words for every target."""
    seeds = make_seeds(root / "made")
    for name in names:
        home = root / name.replace(" ", "-").replace("'", "")
        (home / "corpus").mkdir(parents=True)
        words: set[bytes] = set()
        for seed in TARGETS[name].seeds:
            (home / "corpus" / seed).write_bytes(seeds[seed])
            words |= set(_WORDS.findall(seeds[seed]))
        lines = ["".join(f"\\x{byte:02x}" for byte in word) for word in sorted(words)[:300]]
        (home / "words").write_text("".join(f'"{line}"\n' for line in lines))


def _told(name: str, outcome: Outcome) -> list[str]:
    lines = [
        f"{name:<24}{outcome.runs:>10}{outcome.rate:>8}{outcome.kept:>8}   {len(outcome.findings)} findings"
    ]
    for path in outcome.findings:
        lines += [f"FOUND {name}: {path}", f"hex {path.read_bytes()[:4096].hex()}", outcome.log[-2500:]]
    return lines


def main() -> int:
    """Fuzz the targets, as many at a time as there are processors; 1 when anything was found, 2 without atheris."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all, divided over the targets")
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="this one only; may be repeated"
    )
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz-findings"), help="where inputs that fail are kept"
    )
    options = parser.parse_args()
    if find_spec("atheris") is None:
        print("atheris is missing: pip install 'llgbm-pack[fuzz]'", file=sys.stderr)
        return 2
    names, cores = options.target or list(TARGETS), len(os.sched_getaffinity(0))
    share = options.seconds * min(cores, len(names)) / len(names)
    print(f"{'target':<24}{'runs':>10}{'/s':>8}{'kept':>8}")
    total = found = 0
    with tempfile.TemporaryDirectory(prefix="llgbm-fuzz-") as temporary, ThreadPoolExecutor(cores) as pool:
        _prepare(Path(temporary), names)
        futures = [
            pool.submit(_fuzz, name, Path(temporary), options.save.absolute(), share) for name in names
        ]
        for name, future in zip(names, futures, strict=True):
            outcome = future.result()
            total, found = total + outcome.runs, found + len(outcome.findings)
            print("\n".join(_told(name, outcome)), flush=True)
    print(f"{len(names)} targets, {total} inputs, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
