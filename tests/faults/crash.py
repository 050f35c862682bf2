"""Kill a build at a system call, or make one fail, and see what is left and what a resume makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.trace import CALLS, READS, RECORD, TEMPORARY, Call, broken_rules, points, read_trace
from llgbm_shards import ShardSet, check
from support.fork_server import Child, Ended, ForkServer, fork_server
from support.tiny_zoo import tree, write_deltas, write_zoo

BUILD = "faults.target:build"
#: Files of OUT that are the build's own notes, not the set's.
NOTES = ".pack/"


@dataclass
class Outcome:
    """What became of one injected fault.

    Attributes:
        call: Where it was injected, in words that are the same in every run.
        code: The build's exit code, or minus the signal.
        problems: What is wrong; empty when all is as promised.
        end: How it ended, in words.
    """

    call: str
    code: int
    problems: list[str] = field(default_factory=list)
    end: str = ""

    def __post_init__(self) -> None:
        self.end = self.end or ("killed" if self.code == -signal.SIGKILL else f"exit {self.code}")


class Harness:
    """A zoo, the set that an unbroken build makes of it, and the means to break builds of it."""

    def __init__(self, root: Path, server: ForkServer, *, mutant: str = "", overwrite: bool = False) -> None:
        """Make a zoo of 3 samples in 2 shards; with ``overwrite`` the build replaces another set of it."""
        self.root, self.server, self.mutant = root, server, mutant
        self.options = [
            "--workers",
            "1",
            "-q",
            "--deltas",
            str(root / "deltas"),
            "--shard-bytes",
            "4000",
            "--parity",
            "2",
        ]
        if not (root / "zoo").exists():
            write_deltas(root / "deltas", write_zoo(root / "zoo", 3))
        self.unbroken = self._whole("unbroken")
        self.old = self._whole("old", "--limit", "2") if overwrite else {}

    def _whole(self, name: str, *more: str) -> dict[str, bytes]:
        out = self.root / name / "out"
        if not out.exists():
            out.parent.mkdir()
            ended = self.build(out, *more, mutant="")
            assert ended.code == 0, ended.err
        return tree(out)

    @contextlib.contextmanager
    def fresh(self, at: Path | None = None) -> Iterator[Path]:
        """An OUT as it is before the build, in a directory of its own, removed afterwards."""
        directory = at or self.root / "try"
        directory.mkdir(exist_ok=True)
        out = directory / "out"
        if self.old:
            shutil.copytree(self.root / "old" / "out", out)
        yield out
        if at is None:
            shutil.rmtree(directory)

    def arguments(self, out: Path, *more: str) -> list[str]:
        overwrite = ["--overwrite"] if self.__dict__.get("old") else []
        return [str(self.root / "zoo"), str(out), *self.options, *overwrite, *more]

    def build(self, out: Path, *more: str, mutant: str | None = None) -> Ended:
        """Build without a fault."""
        return self.server.call(BUILD, self.mutant if mutant is None else mutant, self.arguments(out, *more))

    def traced(self, out: Path, *more: str, inject: str = "") -> tuple[Ended, list[Call]]:
        """Build under strace; ``inject`` is its fault, such as ``fsync:error=EIO:when=3``."""
        child = self.server.start(BUILD, self.mutant, self.arguments(out, *more), stopped=True)
        log = self.root / "trace"
        with attached(child, log, inject):
            os.kill(child.pid, signal.SIGCONT)
            ended = self.server.wait(child)
        return ended, read_trace(log, child.pid)

    def calls(self, *more: str) -> list[Call]:
        """All calls of a build without a fault, in words that are the same in every run."""
        with self.fresh() as out:
            ended, calls = self.traced(out, *more)
            assert ended.code == 0, ended.err
            return [replace(call, text=call.told(out)) for call in calls]

    def points(self) -> list[Call]:
        """Where a build can be killed: its calls that change OUT or stand beside one that does."""
        with self.fresh() as out:
            _, calls = self.traced(out)
            return [replace(call, text=call.told(out)) for call in points(calls, out)]

    def ordering(self, inject: str = "") -> list[str]:
        """What one build does in a wrong order."""
        with self.fresh() as out:
            return broken_rules(self.traced(out, inject=inject)[1], out)

    def kill(self, point: Call) -> Outcome:
        """Kill a build when it enters a system call; resume it; compare."""
        with self.fresh() as out:
            ended, calls = self.traced(out, inject=f"{point.name}:signal=KILL:when={point.number}")
            outcome = Outcome(point.text, ended.code)
            if ended.code != -signal.SIGKILL:
                outcome.problems.append(f"not killed: ended with {ended.code}")
            elif calls[-1].told(out) != point.text:
                outcome.problems.append(f"killed elsewhere: {calls[-1].told(out)}")
            outcome.problems += self.looks(out) + self.resumes(out)
        return outcome

    def fail(self, point: Call, error: str, *more: str, codes: Sequence[int] = (3,)) -> Outcome:
        """Let one system call fail; the build must say so and leave nothing half done; resume it; compare."""
        with self.fresh() as out:
            ended, calls = self.traced(out, *more, inject=f"{point.name}:error={error}:when={point.number}")
            outcome = Outcome(point.text, ended.code)
            hit = [call.told(out) for call in calls if call.tampered]
            if hit != [point.text]:
                outcome.problems.append(f"failed elsewhere: {hit}")
            outcome.problems += told_well(ended, codes, committed=(out / RECORD).exists())
            outcome.problems += [rule for rule in broken_rules(calls, out) if "again after a failure" in rule]
            if point.name not in ("unlink", "unlinkat"):
                outcome.problems += [f"left behind: {path.name}" for path in leftovers(out)]
            outcome.problems += self.looks(out) + self.resumes(out, *more)
        return outcome

    def unread(self, point: Call) -> Outcome:
        """Let a read of the zoo or the deltas fail: one checkpoint is skipped and named, or nothing is packed."""
        with self.fresh() as out:
            ended, calls = self.traced(out, inject=f"{point.name}:error=EIO:when={point.number}")
            outcome = Outcome(point.text, ended.code)
            if [call.told(out) for call in calls if call.tampered] != [point.text]:
                outcome.problems.append("failed elsewhere")
            outcome.problems += told_well(ended, (1, 2, 3), committed=False)
            if ended.code == 1:
                outcome.problems += self.lacks_one(out)
            elif (out / RECORD).exists():
                outcome.problems.append("a set was committed")
            else:
                outcome.problems += self.resumes(out)
        return outcome

    def lacks_one(self, out: Path) -> list[str]:
        """What is wrong with a set that one checkpoint is missing from: the others must be as they always are."""
        problems = [] if check(out, workers=1).sound else ["not sound"]
        whole, rows = (_rows(path) for path in (self.root / "unbroken" / "out", out))
        if not rows.items() <= whole.items() or len(rows) != len(whole) - 1:
            problems.append(f"{len(rows)} samples, or other samples than in an unbroken build's set")
        (missing,) = {row[0] for row in whole.values()} - {row[0] for row in rows.values()} or {""}
        listed = json.loads((out / "skipped.json").read_text())["skipped"]
        # A directory that cannot be listed is named itself: nobody knows what is in it.
        if len(listed) != 1 or not f"{missing}/".startswith(f"{listed[0]['checkpoint']}/"):
            problems.append(f"skipped.json lists {listed}")
        return problems

    def looks(self, out: Path) -> list[str]:
        """What is wrong with an OUT that a fault left: something half under a final name, or a set that is none."""
        found = {name: data for name, data in tree(out).items() if not name.startswith(NOTES)}
        if found == self.old:
            return []
        problems = [
            f"partial under its final name: {name}"
            for name, data in found.items()
            if TEMPORARY not in name and data != self.unbroken.get(name)
        ]
        if RECORD in found and not check(out, workers=1).sound:
            problems.append("a commit record of a set that is not sound")
        if self.old and RECORD not in found:
            problems.append("neither the old set nor the new one")
        return problems

    def resumes(self, out: Path, *more: str) -> list[str]:
        """What is wrong when the same build is run again."""
        # A build that died after its commit leaves a little to tidy up; then the set is finished, which is exit 2.
        expected = {0, 2} if (out / RECORD).exists() and not self.old else {0}
        ended = self.build(out, *more)
        problems = []
        if ended.code not in expected or "Traceback" in ended.err:
            problems.append(f"the resume ended with {ended.code}: {ended.err[-300:]}")
        left = tree(out)
        if left != self.unbroken:
            names = (name for name in {*left, *self.unbroken} if left.get(name) != self.unbroken.get(name))
            problems.append(f"other bytes than an unbroken build's: {', '.join(sorted(names))}")
        if beside := [path.name for path in out.parent.iterdir() if path != out]:
            problems.append(f"left beside OUT: {beside}")
        return problems


def told_well(ended: Ended, codes: Sequence[int], *, committed: bool) -> list[str]:
    """What is wrong with how a failed build ended and with what it said."""
    problems = []
    if ended.code not in codes and not (ended.code == 0 and committed):
        problems.append(f"exit code {ended.code}, not {codes}")
    if "Traceback" in ended.err or (ended.code > 1 and not ended.err.startswith("error: ")):
        problems.append(f"no plain message: {ended.err[-600:]}")
    return problems


def _rows(path: Path) -> dict[str, tuple[Any, ...]]:
    """Key -> checkpoint and member digests of every sample of a set."""
    opened = ShardSet(path)
    columns = ["key", "checkpoint", *(f"{member}.blake3" for member in opened.record.members)]
    rows = zip(*(opened.index(columns).column(name).to_pylist() for name in columns), strict=True)
    return {key: tuple(rest) for key, *rest in rows}


def leftovers(out: Path) -> list[Path]:
    """Unfinished files."""
    return [path for path in out.parent.rglob("*") if path.name.startswith(TEMPORARY)]


@contextlib.contextmanager
def attached(child: Child, log: Path, inject: str) -> Iterator[None]:
    """strace on a stopped child, for as long as the block lasts."""
    options = ["-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join((*CALLS, *READS))}"]
    options += ["-e", "signal=none", *(["-e", f"inject={inject}"] if inject else [])]
    command = ["strace", *options, "-p", str(child.pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as strace:
        said = strace.stderr.readline()
        assert "attached" in said, f"strace cannot attach to a child: {said}"
        yield
        strace.communicate()


@contextlib.contextmanager
def serving(root: Path) -> Iterator[ForkServer]:
    """A server of children that have everything imported."""
    with fork_server(root / "logs", "faults.target") as server:
        yield server


def spread(calls: Sequence[Call], count: int) -> list[Call]:
    """Some of the calls, spread evenly; the last always."""
    step = max(1, -(-len(calls) // count))
    return list(calls[::-step])[::-1]


def can_trace() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-o", os.devnull, "true"], check=False, capture_output=True).returncode == 0
    )
