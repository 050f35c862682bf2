"""Fixtures of the tests of streaming."""

from __future__ import annotations

import gc

import pytest

from support.leaks import descriptors, readers
from support.synthetic import write_set


@pytest.fixture
def made(tmp_path):
    """24 samples, four a shard."""
    return write_set(tmp_path / "set", 24, shard_samples=4)


@pytest.fixture
def nothing_leaks():
    """No thread and no descriptor is left by the test."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert readers() == []
    assert descriptors() <= before
