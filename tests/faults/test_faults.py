"""Kills, failing calls, full disks and rivals: some of each here; ``make faults`` injects every one."""

from __future__ import annotations

import pytest

from faults import campaigns
from faults.crash import Harness, can_trace, serving, spread
from faults.mutants import FAULTY
from faults.verdict import caught_by

pytestmark = pytest.mark.slow

needs_strace = pytest.mark.skipif(not can_trace(), reason="faults: strace is missing or may not trace")


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    with serving(root) as server:
        yield Harness(root, server)


def as_promised(outcomes, least):
    outcomes = list(outcomes)
    assert len(outcomes) >= least
    assert [outcome for outcome in outcomes if outcome.problems] == []
    return outcomes


@needs_strace
def test_killed_at_a_system_call_and_resumed_the_bytes_are_the_same(harness):
    points = harness.points()
    assert len(points) > 100
    assert {"openat", "writev", "fsync", "close", "rename", "unlink", "mkdir"} <= {p.name for p in points}
    as_promised(campaigns.kills(harness, spread(points, 12)), 10)


@needs_strace
def test_killed_while_it_replaces_a_set_the_old_one_or_the_new_one_is_whole(harness):
    replacing = Harness(harness.root, harness.server, overwrite=True)
    points = replacing.points()
    (swap,) = (number for number, point in enumerate(points) if point.name == "renameat2")
    as_promised(campaigns.kills(replacing, points[swap - 2 : swap + 4]), 6)


@needs_strace
def test_every_file_is_durable_before_what_speaks_of_it(harness):
    assert harness.ordering() == []
    assert Harness(harness.root, harness.server, overwrite=True).ordering() == []


@needs_strace
@pytest.mark.parametrize("mutant", FAULTY)
def test_a_faulty_writer_is_caught(harness, mutant):
    """What proves that the harness and the ordering check would see such a fault."""
    assert caught_by(harness.root, harness.server, mutant)


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT", "EROFS"])
def test_a_call_on_out_that_fails_is_told_and_resumed(harness, error):
    points = [
        p for p in harness.points() if p.name in ("openat", "writev", "fsync", "rename", "mkdir", "pwrite64")
    ]
    ends = as_promised(campaigns.write_errors(harness, spread(points, 5), error), 4)
    assert {outcome.code for outcome in ends} <= {0, 3}


@needs_strace
def test_after_a_failed_fsync_comes_a_new_file_and_never_the_same_fsync_again(harness):
    syncs = [point for point in harness.points() if point.name == "fsync" and ".tmp-" in point.text]
    ends = as_promised(campaigns.write_errors(harness, syncs[::2]), 4)
    assert {outcome.code for outcome in ends} == {3}


@needs_strace
def test_an_input_that_cannot_be_read_costs_its_checkpoint_and_no_other(harness):
    as_promised(campaigns.read_errors(harness, spread(campaigns.read_points(harness), 8)), 7)


def test_a_full_disk_is_told_and_resumed(harness):
    if not campaigns.can_mount(harness.root / "disk"):
        pytest.skip("faults: a tmpfs cannot be mounted here")
    as_promised(campaigns.full_disks(harness, campaigns.disk_options(harness)[::5]), 4)


def test_of_two_builds_on_one_out_the_second_names_the_first(harness):
    as_promised(campaigns.rivals(harness, 4), 4)
