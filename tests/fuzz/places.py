"""Files that hold a target's input, for parsers that open files."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch() -> Path:
    """A directory of this process, in memory where there is one."""
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    made = tempfile.TemporaryDirectory(prefix="llgbm-fuzz-", dir=parent)
    _KEPT.append(made)
    return Path(made.name)


def put(data: bytes, name: str) -> Path:
    """A file of that name that holds the bytes."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
