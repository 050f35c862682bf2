"""System calls of a build as strace tells them, and the order they must keep for a crash to lose nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Calls that change OUT, or stand beside one that does.
CALLS = (
    "openat", "write", "writev", "pwrite64", "fadvise64", "fsync", "fdatasync", "close", "rename", "renameat",
    "renameat2", "link", "unlink", "unlinkat", "rmdir", "mkdir", "ftruncate", "flock", "chmod", "fchmod",
)  # fmt: skip
#: Calls that read.
READS = ("read", "pread64", "preadv", "preadv2")
#: The prefix of unfinished files, and the two lock files, which are written in place.
TEMPORARY = ".tmp-"
LOCKS = (".pack/lock", ".pack/workers")
RECORD = "shardset.json"

_UNFINISHED = " <unfinished ...>"
_LINE = re.compile(r"(?:(?P<pid>\d+) +)?(?P<name>\w+)\((?P<rest>.*)")
_RESULT = re.compile(r"\) += (?P<result>-?\d+|\?)")
_QUOTED = re.compile(r'"([^"]*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")


@dataclass(frozen=True)
class Call:
    """One system call: its name, how many of that name there were before it and with it, its text, its result."""

    name: str
    number: int
    text: str
    result: int | None
    tampered: bool

    def touches(self, directory: Path) -> bool:
        return str(directory) in self.text

    def told(self, out: Path) -> str:
        """The call without what differs from run to run."""
        text = re.sub(r"\.tmp-(.+?)-\d+(-[0-9a-f]{8})?(?=[\">])", r".tmp-\1", self.text)
        text = text.replace(str(out.parent), "").replace("/out", "OUT").replace("/.OUT", "/.out")
        text = re.sub(r'0x[0-9a-f]+|""(\.\.\.)?|\[\.\.\.\]', "_", _RESULT.split(text)[0])
        if self.descriptor().endswith(LOCKS):
            # What a lock says of its holder is as long as its process id has digits.
            text = re.sub(r"_, \d+", "_, _", text)
        return f"{self.name}({text})"

    def names(self) -> list[str]:
        """The paths in its arguments."""
        return _QUOTED.findall(_RESULT.split(self.text)[0])

    def descriptor(self) -> str:
        """The path of the descriptor that is its first argument."""
        found = _DESCRIPTOR.match(self.text)
        return found[1] if found else ""


def read_trace(log: Path, pid: int) -> list[Call]:
    """The calls of a process's main thread, in order."""
    calls, counts = [], Counter[str]()
    for line in _whole_lines(log.read_text(errors="replace")):
        found = _LINE.match(line)
        if found is None or (found["pid"] and int(found["pid"]) != pid):
            continue
        counts[found["name"]] += 1
        result = _RESULT.search(found["rest"])
        value = int(result["result"]) if result and result["result"] != "?" else None
        calls.append(
            Call(found["name"], counts[found["name"]], found["rest"], value, "(INJECTED)" in found["rest"])
        )
    return calls


def _whole_lines(text: str) -> list[str]:
    """The lines of a log; a call that another thread's line cut in two is put together, where it began."""
    lines: list[str] = []
    begun: dict[str, int] = {}  # thread -> the line of its call that is not finished
    for line in text.splitlines():
        thread = line.partition(" ")[0]
        if "resumed>" in line and thread in begun:
            lines[begun.pop(thread)] += line.partition("resumed>")[2]
            continue
        if line.endswith(_UNFINISHED):
            begun[thread] = len(lines)
        lines.append(line.removesuffix(_UNFINISHED))
    return lines


@dataclass
class _File:
    """A file of OUT while it is written."""

    synced: bool = False
    failed: bool = False


class Order:
    """Follows the calls of one build and collects what breaks the rules.

    1. Nothing is written under its final name, but the lock.
    2. A file is synced after its last write and before its rename.
    3. After a rename the directory is synced before anything else is renamed.
    4. A shard's record comes after the shard; the commit record is the last rename of all.
    5. A directory that was made is durable before the commit record: its parent was synced.
    6. After a failed fsync there is no other on the same file, and it is not renamed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.problems: list[str] = []
        self.files: dict[str, _File] = {}
        self.unsynced: dict[str, str] = {}  # directory -> what was renamed into it since its last sync
        self.made: set[str] = set()  # parents of directories made, not synced since
        self.renamed: list[str] = []

    def follow(self, calls: Sequence[Call]) -> list[str]:
        for call in calls:
            if call.touches(self.out.parent) and (
                call.result is None or call.result >= 0 or call.name == "fsync"
            ):
                getattr(self, f"_{call.name}", lambda call: None)(call)
        self.problems += [f"never synced after a rename: {name}" for name in self.unsynced.values()]
        return self.problems

    def _openat(self, call: Call) -> None:
        path = call.names()[0]
        if not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call.text):
            return
        if Path(path).name.startswith(TEMPORARY):
            self.files[path] = _File()
        elif not path.endswith(LOCKS):
            self.problems.append(f"written under its final name: {path}")

    def _write(self, call: Call) -> None:
        self.files.setdefault(call.descriptor(), _File()).synced = False

    _writev = _pwrite64 = _ftruncate = _write

    def _fsync(self, call: Call) -> None:
        path = call.descriptor()
        if path in self.files:
            if self.files[path].failed:
                self.problems.append(f"synced again after a failure: {path}")
            self.files[path].synced = call.result == 0
            self.files[path].failed = call.result != 0
        elif call.result == 0:
            self.unsynced.pop(path, None)
            self.made.discard(path)

    _fdatasync = _fsync

    def _mkdir(self, call: Call) -> None:
        self.made.add(str(Path(call.names()[0]).parent))

    def _rename(self, call: Call) -> None:
        source, target = call.names()
        if not self.files.pop(source, _File()).synced:
            self.problems.append(f"renamed before it was synced: {target}")
        name = Path(target).name
        self.problems += [
            f"renamed before the directory was synced after {other}: {target}"
            for other in self.unsynced.values()
        ]
        if RECORD in self.renamed:
            self.problems.append(f"renamed after the commit record: {target}")
        if name.endswith((".tar", ".parity")) and f"{Path(name).stem}.tar.json" in self.renamed:
            self.problems.append(f"renamed after its record: {target}")
        if name == RECORD:
            self.problems += [
                f"made and never durable: a directory in {parent}" for parent in sorted(self.made)
            ]
        self.renamed.append(name)
        self.unsynced[str(Path(target).parent)] = target

    _renameat = _rename

    def _renameat2(self, call: Call) -> None:
        """The exchange of two directories: everything in them must be durable by then."""
        source, target = call.names()[-2:]
        if RECORD not in self.renamed or self.unsynced:
            self.problems.append(f"exchanged before it was finished: {source}")
        self.unsynced[str(Path(target).parent)] = target


def broken_rules(calls: Sequence[Call], out: Path) -> list[str]:
    """What the calls of a build do in a wrong order; empty when a crash at any moment loses nothing."""
    return Order(out).follow(calls)


def points(calls: Sequence[Call], out: Path) -> Iterator[Call]:
    """The calls that touch OUT and change something there or stand beside a change: where a build can be killed."""
    return (call for call in calls if call.name in CALLS and call.touches(out.parent))
