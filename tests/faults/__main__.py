"""``make faults``: inject every fault there is into small builds, and print a table of what became of them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import campaigns
from faults.crash import Harness, Outcome, can_trace, serving
from faults.mutants import FAULTY
from faults.verdict import mutant_outcome

Campaign = tuple[str, str, Callable[[Path], Iterable[Outcome]]]
_ROUNDS = 20


def _with(
    run: Callable[[Harness], Iterable[Outcome]], *, overwrite: bool = False
) -> Callable[[Path], list[Outcome]]:
    """A campaign on a harness of its own, with a server of its own."""

    def campaign(root: Path) -> list[Outcome]:
        with serving(root) as server:
            return list(run(Harness(root, server, overwrite=overwrite)))

    return campaign


def _mutants(root: Path) -> list[Outcome]:
    with serving(root) as server:
        return [mutant_outcome(root, server, name) for name in FAULTY]


def _campaigns(root: Path) -> list[Campaign]:
    traced = [
        ("SIGKILL", "resumed to the same bytes", _with(lambda h: campaigns.kills(h, h.points()))),
        (
            "SIGKILL, --overwrite",
            "the old set or the new one, whole; resumed to the same bytes",
            _with(lambda h: campaigns.kills(h, h.points()), overwrite=True),
        ),
        (
            "EIO of OUT",
            "exit 3 or done; nothing partial; resumed to the same bytes",
            _with(lambda h: campaigns.write_errors(h, h.points())),
        ),
        (
            "EIO of an input",
            "its checkpoint skipped and named, or exit 3 and resumed",
            _with(lambda h: campaigns.read_errors(h, campaigns.read_points(h))),
        ),
        ("a faulty writer", "caught", _mutants),
    ]
    mounted = [
        (
            "ENOSPC",
            "exit 3 or done; nothing partial; resumed to the same bytes",
            _with(lambda h: campaigns.full_disks(h, campaigns.disk_options(h))),
        )
    ]
    rivals = [
        (
            "two builds on one OUT",
            "the second refused by name; the first's set whole",
            _with(lambda h: campaigns.rivals(h, _ROUNDS)),
        )
    ]
    return [
        *(traced if can_trace() else _left_out("strace cannot trace here")),
        *(mounted if campaigns.can_mount(root / "mount") else _left_out("a tmpfs cannot be mounted here")),
        *rivals,
    ]


def _left_out(why: str) -> list[Campaign]:
    return [(f"LEFT OUT: {why}", "", lambda _root: [])]


def _table(title: str, promise: str, outcomes: list[Outcome]) -> list[str]:
    """One row a call: how often, how the builds ended, how many did as promised."""
    rows = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.call.partition("(")[0]].append(outcome)
    lines = [f"{title:<24}{'':<32}{len(outcomes):>6}   {promise}"]
    for name, group in rows.items():
        ends = ", ".join(f"{end} x{count}" for end, count in Counter(one.end for one in group).items())
        good = sum(not one.problems for one in group)
        lines.append(f"{'':<24}{name:<32}{len(group):>6}   {ends}; as promised {good}")
    return lines


def _wrong(title: str, outcomes: list[Outcome]) -> list[str]:
    """A line for everything that is not as promised."""
    return [f"WRONG {title}: {one.call}: {problem}" for one in outcomes for problem in one.problems]


def main() -> int:
    """Run all campaigns, two at a time; 1 when anything was not as promised."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llgbm-faults-") as temporary, ThreadPoolExecutor(2) as pool:
        runs = []
        for number, (title, promise, run) in enumerate(_campaigns(Path(temporary))):
            root = Path(temporary) / f"{number}"
            root.mkdir()
            runs.append((title, promise, pool.submit(run, root)))
        total, wrong, told = 0, 0, list[str]()
        print(f"{'fault':<24}{'at':<32}{'points':>6}   outcome")
        for title, promise, future in runs:
            outcomes = list(future.result())
            total, wrong = total + len(outcomes), wrong + sum(bool(outcome.problems) for outcome in outcomes)
            told += _wrong(title, outcomes)
            print("\n".join(_table(title, promise, outcomes)), flush=True)
    print("".join(f"{line}\n" for line in told), end="")
    cores = len(os.sched_getaffinity(0))
    print(f"{total} faults, {wrong} not as promised, {time.monotonic() - start:.0f} s on {cores} cores")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
