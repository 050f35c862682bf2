"""Fixtures of the tests of packing."""

from __future__ import annotations

import shutil

import pytest

from llgbm_pack import build
from support.tiny_zoo import write_deltas, write_zoo
from support.unfinished import COUNT, options


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """zoo, deltas, and the set that an unbroken build gives: a sample a shard."""
    root = tmp_path_factory.mktemp("resume")
    write_deltas(root / "deltas", write_zoo(root / "zoo", COUNT))
    build(options(root, root / "unbroken", workers=1))
    return root


@pytest.fixture
def own(made, tmp_path):
    """A copy of zoo and deltas that a test may edit."""
    for name in ("zoo", "deltas"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def zoo(tmp_path):
    """tmp_path/zoo with four good checkpoints."""
    write_zoo(tmp_path / "zoo", 4)
    return tmp_path / "zoo"
