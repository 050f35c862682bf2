"""The commands as a user runs them: in processes of their own, or (faster) in this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*args: object, program: str = "llgbm-pack") -> list[str]:
    """The command line of the installed program."""
    return [str(SCRIPTS / program), *map(str, args)]


def here(*args: object) -> Done:
    """Run ``llgbm-pack`` in this process."""
    from llgbm_pack.cli.commands import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args], prog_name="llgbm-pack")
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def run(*args: object, program: str = "llgbm-pack", **options: Any) -> Done:
    """Run a program of this project in a process of its own."""
    options = {"timeout": 120, **options}
    done = subprocess.run(
        command(*args, program=program), check=False, capture_output=True, text=True, **options
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(*args: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is running, in a process group of its own; whatever is left of the group is killed."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*args), start_new_session=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, *, timeout_s: float = 60
) -> None:
    """Poll a condition; fails when the process that should bring it about has ended."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


def group_members(group: int) -> list[int]:
    """Processes of a process group that still run (zombies do not)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found
