"""Children that need no imports: a server imports once, then forks a child for each request.

Free standing: the server is ``python -m support.fork_server MODULE...``, spoken to in JSON lines. A child runs
``module:function`` with JSON arguments and ends with the function's result as its exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ROOTS = [TESTS.parent / name for name in ("shards", "loader", "pack")] + [TESTS]
MIB = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code, or minus the signal; what it printed; how long it ran."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Child:
    """A child that was started."""

    pid: int
    log: Path


class ForkServer:
    """The side of the tests."""

    def __init__(self, logs: Path, *modules: str) -> None:
        """Start a server that has imported ``modules``; ``logs`` is a directory for what children print."""
        self._logs = logs
        self._count = 0
        path = os.pathsep.join(map(str, ROOTS))
        command = [sys.executable, "-m", "support.fork_server", *modules]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._answer()

    def start(self, call: str, *args: Any, memory: int = 0, stopped: bool = False) -> Child:
        """Fork a child; ``memory`` bounds its address space in bytes, ``stopped`` leaves it stopped before the call."""
        self._count += 1
        log = self._logs / f"{self._count}"
        pid = self._ask(do="start", call=call, args=args, memory=memory, stopped=stopped, log=str(log))
        if stopped:
            wait_for_state(pid, "T")
        return Child(pid, log)

    def wait(self, child: Child, timeout_s: float = 30) -> Ended:
        """Wait for the end of a child; it is killed at the timeout."""
        code, seconds = self._ask(do="wait", pid=child.pid, timeout_s=timeout_s)
        texts = [child.log.with_suffix(suffix).read_text() for suffix in (".out", ".err")]
        return Ended(code, texts[0], texts[1], seconds)

    def call(self, call: str, *args: Any, memory: int = 0, timeout_s: float = 30) -> Ended:
        """Start a child and wait for its end."""
        return self.wait(self.start(call, *args, memory=memory), timeout_s)

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def _ask(self, **request: Any) -> Any:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._server.stdout.readline()
        assert line, f"the server ended with {self._server.wait()}"
        return json.loads(line)


@contextlib.contextmanager
def fork_server(logs: Path, *modules: str) -> Iterator[ForkServer]:
    """A server that is ended in the end."""
    logs.mkdir(parents=True, exist_ok=True)
    server = ForkServer(logs, *modules)
    try:
        yield server
    finally:
        server.close()


def wait_for_state(pid: int, state: str, timeout_s: float = 20) -> None:
    """Poll until a process is in a state, as /proc names it (T: stopped)."""
    end = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < end, f"{pid} is not in state {state} within {timeout_s} s"
        time.sleep(0.001)


def _serve(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    started: dict[int, float] = {}
    _say(None)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _child(request)
            started[pid] = time.monotonic()
            _say(pid)
        else:
            pid = request["pid"]
            _say([_reap(pid, request["timeout_s"]), time.monotonic() - started.pop(pid)])


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _reap(pid: int, timeout_s: float) -> int:
    end = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.001)


def _child(request: dict[str, Any]) -> None:
    for number, suffix in enumerate((os.devnull, f"{request['log']}.out", f"{request['log']}.err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(suffix, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - the server's requests are none of the child's business
    module, _, name = request["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    if request["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    code = 70
    try:
        code = function(*request["args"])
    except SystemExit as end:
        code = end.code
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    _serve(sys.argv[1:])
