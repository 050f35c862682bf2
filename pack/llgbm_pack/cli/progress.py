"""Progress on stderr: a bar with rate and ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from llgbm_pack.cli.output import Output, human_bytes

if TYPE_CHECKING:
    from llgbm_pack.plan.plan import Plan

_LINE_EVERY_S: Final = 10.0


@contextlib.contextmanager
def progress_for(output: Output) -> Iterator[Any]:
    """The progress that fits where stderr goes, None when quiet."""
    if output.quiet:
        yield None
    elif not sys.stderr.isatty():
        yield Lines(output)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        counts = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(TextColumn("packing"), *counts, console=console, transient=True) as progress:
            yield _Bar(progress)


class Lines:
    """A plain line when the plan is made and then every ten seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._total = self._done = 0
        self._start = self._last = time.monotonic()

    def planned(self, plan: Plan, done: int) -> None:
        """Say what is to be done."""
        self._total, self._done = plan.samples, done
        self._start = self._last = time.monotonic()
        shards = "1 shard" if len(plan.jobs) == 1 else f"{len(plan.jobs)} shards"
        resumed = f", {done} of them packed by an earlier run" if done else ""
        self._output.say(f"packing {plan.samples} checkpoints into {shards}{resumed}")

    def advanced(self, samples: int, source_bytes: int) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        done, rate = self._done + samples, samples / (now - self._start)
        eta = f", {(self._total - done) / rate:.0f} s left" if rate else ""
        self._output.say(
            f"{done}/{self._total} checkpoints, {human_bytes(source_bytes / (now - self._start))}/s{eta}"
        )


class _Bar:
    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._done, self._start = 0, time.monotonic()
        self._task: Any = None

    def planned(self, plan: Plan, done: int) -> None:
        self._done, self._start = done, time.monotonic()
        self._task = self._progress.add_task("packing", total=plan.samples, completed=done, rate="")

    def advanced(self, samples: int, source_bytes: int) -> None:
        rate = human_bytes(source_bytes / max(time.monotonic() - self._start, 1e-3)) + "/s"
        self._progress.update(self._task, completed=self._done + samples, rate=rate)
