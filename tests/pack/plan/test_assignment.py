"""Shards and splits are pure functions of seed and paths, and stay what they are from version to version."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_pack.plan.assignment import TRAIN, VAL, assign_shards, seeded_hash, split_of

PATHS = st.lists(st.text("ab/é", min_size=1, max_size=6), unique=True, max_size=30)


def assign(groups, **options):
    return assign_shards(
        groups, **{"pieces_bytes": 10, "shard_bytes": 35, "seed": 0, "val_fraction": 0.0, **options}
    )


def test_pinned():
    """Sets packed yesterday and resumed today depend on these values."""
    assert seeded_hash(0, "order", "t0/run_0").hex()[:16] == "939d5a9080f071bb"
    groups = [(f"t{number % 3}/run_{number}", f"t{number % 3}") for number in range(10)]
    found = [(one.name, one.split, one.paths) for one in assign(groups, val_fraction=0.5)]
    assert found == [
        ("train-000000.tar", "train", ("t2/run_5", "t2/run_8", "t2/run_2")),
        ("val-000000.tar", "val", ("t0/run_3", "t1/run_4", "t1/run_7")),
        ("val-000001.tar", "val", ("t0/run_9", "t1/run_1", "t0/run_0")),
        ("val-000002.tar", "val", ("t0/run_6",)),
    ]


def test_parts_are_not_run_together():
    assert seeded_hash(0, "a", "bc") != seeded_hash(0, "ab", "c")
    assert seeded_hash(1, "a") != seeded_hash(0, "a")


@settings(max_examples=30, deadline=None)
@given(PATHS, st.integers(0, 5), st.floats(0, 0.99), st.integers(1, 60), st.randoms())
def test_every_path_once_whatever_the_order(paths, seed, fraction, shard_bytes, random):
    groups = [(path, path[:1]) for path in paths]
    options = {"seed": seed, "val_fraction": fraction, "shard_bytes": shard_bytes}
    found = assign(groups, **options)
    shuffled = list(groups)
    random.shuffle(shuffled)
    assert assign(shuffled, **options) == found
    assert sorted(path for one in found for path in one.paths) == sorted(paths)
    assert all(1 <= len(one.paths) <= max(1, shard_bytes // 10) for one in found)
    assert len({one.name for one in found}) == len(found)
    assert all(split_of(seed, path[:1], fraction) == one.split for one in found for path in one.paths)


def test_a_group_is_never_divided_and_stays_when_the_zoo_grows():
    groups = [(f"task{task}/{run}", f"task{task}") for task in range(60) for run in range(3)]
    split = {path: one.split for one in assign(groups, val_fraction=0.3) for path in one.paths}
    by_task = {}
    for path, found in split.items():
        by_task.setdefault(path.split("/")[0], set()).add(found)
    assert all(len(found) == 1 for found in by_task.values())
    assert 8 <= sum(found == {VAL} for found in by_task.values()) <= 30  # 18 of 60 expected
    more = [*groups, *((f"task{task}/3", f"task{task}") for task in range(90))]
    grown = {path: one.split for one in assign(more, val_fraction=0.3) for path in one.paths}
    assert all(grown[path] == found for path, found in split.items())


def test_shards_mix_tasks():
    groups = [(f"{task}/{run}", task) for task in "abcd" for run in range(25)]
    for one in assign(groups, shard_bytes=200):
        assert len({path[0] for path in one.paths}) >= 3, one


def test_order_is_of_the_seed():
    groups = [(f"run_{number}", "") for number in range(30)]
    orders = {tuple(path for one in assign(groups, seed=seed) for path in one.paths) for seed in range(4)}
    assert len(orders) == 4
    assert sorted(groups) != [(path, "") for path in next(iter(orders))]


@pytest.mark.parametrize(("body", "shard", "count"), [(10, 1, 1), (10, 10, 1), (10, 39, 3), (10, 40, 4)])
def test_samples_of_a_shard(body, shard, count):
    first = assign([(f"{number}", "") for number in range(9)], pieces_bytes=body, shard_bytes=shard)[0]
    assert len(first.paths) == count
    assert (first.name, first.split) == ("train-000000.tar", TRAIN)
