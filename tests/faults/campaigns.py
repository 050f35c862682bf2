"""The campaigns: kills, failing calls, full disks, rivals. The tests run samples of them, ``make faults`` all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from faults.crash import Harness, Outcome, leftovers, told_well
from faults.trace import READS, RECORD, Call
from support.fork_server import wait_for_state

#: Advice and waiting: that they fail changes nothing.
HARMLESS = ("fadvise64", "flock")
_PAGE = 4096


def kills(harness: Harness, points: Iterable[Call]) -> Iterator[Outcome]:
    """SIGKILL at the entry of each call."""
    return (harness.kill(point) for point in points)


def write_errors(harness: Harness, points: Iterable[Call], error: str = "EIO") -> Iterator[Outcome]:
    """Each call that touches OUT fails in turn."""
    return (harness.fail(point, error) for point in points if point.name not in HARMLESS)


def read_points(harness: Harness) -> list[Call]:
    """Calls that open or read something of the zoo or the deltas."""
    sources = [f"{harness.root}/{name}" for name in ("zoo", "deltas")]
    calls = harness.calls()
    return [c for c in calls if c.name in (*READS, "openat") and any(source in c.text for source in sources)]


def read_errors(harness: Harness, points: Iterable[Call]) -> Iterator[Outcome]:
    """Each call that opens or reads an input fails in turn."""
    return (harness.unread(point) for point in points)


def can_mount(directory: Path) -> bool:
    """Whether a tmpfs can be mounted here."""
    directory.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", directory], check=False, capture_output=True
    )
    if mounted.returncode == 0:
        subprocess.run(["umount", directory], check=True)
    return mounted.returncode == 0


@contextlib.contextmanager
def small_disk(directory: Path, *options: str) -> Iterator[Path]:
    """A tmpfs of some pages or of some inodes."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def disk_options(harness: Harness) -> list[str]:
    """Limits of a tmpfs, page by page and inode by inode, from next to nothing to nearly enough."""
    files = harness.unbroken.values()
    pages = sum(-(-len(data) // _PAGE) for data in files)
    sizes = [f"size={count * _PAGE}" for count in range(1, pages + 6)]
    return [*sizes, *(f"nr_inodes={count}" for count in range(2, len(files) + 7))]


def full_disks(harness: Harness, limits: Iterable[str]) -> Iterator[Outcome]:
    """Build on a disk that is too small; give it room; resume."""
    for limit in limits:
        with small_disk(harness.root / "disk", limit) as disk, harness.fresh(disk) as out:
            ended = harness.build(out)
            outcome = Outcome(f"{limit.split('=')[0]}(tmpfs {limit})", ended.code)
            outcome.problems += told_well(ended, (3,), committed=(out / RECORD).exists())
            if ended.code == 3 and not re.search(r"no space left on the device: .*\d+ bytes free", ended.err):
                outcome.problems.append(f"another message: {ended.err}")
            outcome.problems += [f"left behind: {path.name}" for path in leftovers(out)]
            outcome.problems += harness.looks(out) if out.exists() else []
            room = ["mount", "-o", "remount,size=16m,nr_inodes=1000", disk]
            subprocess.run(room, check=True)
            outcome.problems += harness.resumes(out)
        yield outcome


def rivals(harness: Harness, rounds: int) -> Iterator[Outcome]:
    """Two builds on one OUT: the second names the first. The first goes on, or dies and is taken over from."""
    first = Harness(harness.root, harness.server, mutant="stops at its first shard")
    for number in range(rounds):
        dies = number % 2 == 1
        with harness.fresh() as out:
            child = first.server.start("faults.target:build", first.mutant, first.arguments(out))
            wait_for_state(child.pid, "T")
            second = harness.build(out)
            outcome = Outcome(f"{'dead' if dies else 'live'}(a builder that holds OUT)", second.code)
            outcome.problems += told_well(second, (3,), committed=False)
            who = rf"got host {re.escape(socket.gethostname())}, pid {child.pid}, since 20\d\d-"
            if not re.search(who, second.err):
                outcome.problems.append(f"does not say who: {second.err}")
            os.kill(child.pid, signal.SIGKILL if dies else signal.SIGCONT)
            ended = first.server.wait(child)
            if ended.code != (-signal.SIGKILL if dies else 0):
                outcome.problems.append(f"the first builder ended with {ended.code}: {ended.err}")
            outcome.problems += harness.looks(out) + harness.resumes(out)
        yield outcome
