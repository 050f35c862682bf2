"""A small part of ``make stress``: consumers that keep batches on a machine kept busy, under a watchdog."""

from __future__ import annotations

import pytest

from stress.__main__ import busy, one
from stress.consumer import KEEPING
from support.synthetic import write_set

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("keep", KEEPING)
def test_no_consumer_waits_for_ever_on_a_busy_machine(tmp_path, keep):
    made = write_set(tmp_path / "set", 400, texts=False, delta_width=0, shard_samples=50)
    with busy(2):
        assert all(one(made.path, keep, readers, 200, seed) for seed, readers in enumerate([2, 6]))
