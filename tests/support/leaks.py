"""What an iteration must not leave behind: reader threads, descriptors."""

from __future__ import annotations

import os
import sys
import threading


def readers() -> list[threading.Thread]:
    """Reader threads there are."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("llgbm-reader")]


def descriptors() -> int:
    """Number of open descriptors."""
    return len(os.listdir("/proc/self/fd"))


def child_env() -> dict[str, str]:
    """Environment of a Python that finds what this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
