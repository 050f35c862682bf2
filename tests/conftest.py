"""Fixtures shared by all tests."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class DemoZoo:
    """Where the shared demo lies. Nobody writes to it: a test that wants to change it copies it first."""

    root: Path
    zoo: Path
    deltas: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def demo_zoo(tmp_path_factory: pytest.TempPathFactory) -> DemoZoo:
    """One demo zoo for the whole session, made by whichever worker comes first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root = shared / "demo-zoo"
    with (shared / "demo-zoo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _make(tmp_path_factory.mktemp("unfinished-demo"), root)
    return DemoZoo(root=root, zoo=root / "zoo", deltas=root / "deltas", tokenizer=root / "tokenizer")


def _make(unfinished: Path, root: Path) -> None:
    # Not at the top of the file: most tests do without torch and PEFT.
    from llgbm_pack.demo.make import make_demo

    make_demo(unfinished)
    unfinished.rename(root)  # so a half-made demo is never taken for a whole one
