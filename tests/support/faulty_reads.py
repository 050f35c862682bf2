"""Reads that the system cuts short, or refuses: in this process, of files below one directory only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SHORT = 333  # less than a tar header
_READS = ("read", "pread", "readv", "preadv")
_opened: list[Callable[[object, object], None]] = []


def _below(fd: int, root: Path) -> bool:
    name = os.readlink(f"/proc/self/fd/{fd}")
    return name.startswith(f"{root}/") and "/.pack/" not in name and os.access(name, os.F_OK)


def _cut(wanted: Any) -> Any:
    """What is asked for, no more than a few bytes of it: a size, or the first buffer."""
    if isinstance(wanted, int):
        return min(wanted, _SHORT)
    return [memoryview(wanted[0]).cast("B")[:_SHORT]]


@contextlib.contextmanager
def faulty_reads(monkeypatch: Any, root: Path, error: int) -> Iterator[list[int]]:
    """Within the block reads below ``root`` fail with an errno; with 0 they give a few bytes at a time.

    Yields a list with an item for each read that met it.
    """
    met: list[int] = []

    def faulty(plain: Callable[..., Any]) -> Callable[..., Any]:
        def read(fd: int, wanted: Any, *place: Any) -> Any:
            if not _below(fd, root):
                return plain(fd, wanted, *place)
            met.append(fd)
            if error:
                raise OSError(error, os.strerror(error))
            return plain(fd, _cut(wanted), *place)

        return read

    with monkeypatch.context() as patched:
        for name in _READS:
            patched.setattr(os, name, faulty(getattr(os, name)))
        yield met


def _hook(event: str, values: tuple[object, ...]) -> None:
    if event == "open":
        for told in _opened:
            told(values[0], values[1])


@contextlib.contextmanager
def buffered_opens(root: Path) -> Iterator[list[str]]:
    """Yields a list of the files below ``root`` that ``open()`` opens for reading, with a buffer or without."""
    found: list[str] = []

    def told(path: object, mode: object) -> None:
        if isinstance(mode, str) and "r" in mode and str(path).startswith(f"{root}/"):
            found.append(str(path))

    if not getattr(_hook, "added", False):
        sys.addaudithook(_hook)  # for good: there is no way to take one out
        _hook.added = True  # type: ignore[attr-defined]
    _opened.append(told)
    try:
        yield found
    finally:
        _opened.remove(told)
