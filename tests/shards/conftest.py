"""Fixtures of the tests of the format."""

from __future__ import annotations

import pytest

from support.synthetic import write_set


@pytest.fixture
def made(tmp_path):
    """Twelve samples in shards of five, five and two."""
    return write_set(tmp_path / "set", 12, shard_samples=5)
