"""The order of an epoch and its slices: every sample once, on every world, resumed anywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_loader.order import PADDING_ROW, Slices, epoch_order
from llgbm_shards.errors import UsageError

_worlds = st.integers(1, 6)
_batches = st.integers(1, 7)


def _slices(samples, world, batch, remainder, position=0):
    return [
        Slices(
            samples=samples,
            position=position,
            batch_size=batch,
            rank=rank,
            world_size=world,
            remainder=remainder,
        )
        for rank in range(world)
    ]


def _global(slices, order, batches):
    """What all ranks together consume in the first ``batches`` batches, in global order."""
    rows = [part.rows(order, batch) for batch in range(batches) for part in slices]
    return [int(row) for row in np.concatenate(rows)] if rows else []


@given(st.integers(0, 60), _worlds, _batches, st.sampled_from(["drop", "pad"]), st.integers(0, 2**31))
def test_every_sample_once_and_equal_batch_counts(samples, world, batch, remainder, seed):
    order = epoch_order(seed, 3, samples)
    slices = _slices(samples, world, batch, remainder)
    assert len({len(part) for part in slices}) == 1
    rows = _global(slices, order, len(slices[0]))
    real = [row for row in rows if row != PADDING_ROW]
    assert real == order[: len(real)].tolist()
    if remainder == "pad":
        assert sorted(real) == list(range(samples))
        assert len(rows) - len(real) < world * batch
    else:
        assert real == rows
        assert samples - len(rows) < world * batch


@given(
    st.integers(0, 50),
    st.lists(st.tuples(_worlds, _batches, st.integers(0, 5)), min_size=1, max_size=4),
    st.sampled_from(["drop", "pad"]),
)
def test_resuming_elsewhere_continues_the_same_sequence(samples, legs, remainder):
    order = epoch_order(1, 0, samples)
    position, seen = 0, []
    for world, batch, wanted in legs:
        slices = _slices(samples, world, batch, remainder, position)
        batches = min(wanted, len(slices[0]))
        seen += [row for row in _global(slices, order, batches) if row != PADDING_ROW]
        positions = {part.position_after(batches) for part in slices}
        assert len(positions) == 1
        position = positions.pop()
        assert seen == order[:position].tolist()


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_order_is_a_permutation_that_seed_and_epoch_change(samples, seed, epoch):
    order = epoch_order(seed, epoch, samples)
    assert sorted(order.tolist()) == list(range(samples))
    if samples > 20:
        assert order.tolist() != epoch_order(seed + 1, epoch, samples).tolist()
        assert order.tolist() != epoch_order(seed, epoch + 1, samples).tolist()


def test_order_is_pinned():
    # A change here reshuffles the middle of everybody's epochs: it needs a new version of the saved state.
    assert epoch_order(0, 0, 8).tolist() == [3, 4, 5, 2, 0, 6, 7, 1]
    assert epoch_order(0, 0, 5, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 100))
def test_shuffle_by_shard_keeps_shards_together(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = epoch_order(seed, 0, len(groups), groups=groups)
    assert sorted(order.tolist()) == list(range(len(groups)))
    runs = [shard for shard, _ in itertools.groupby(groups[order].tolist())]
    assert len(runs) == len(sizes)


def test_shuffle_by_shard_moves_shards_and_samples():
    groups = np.repeat(np.arange(20), 20)
    order = epoch_order(0, 0, 400, groups=groups)
    assert groups[order].tolist() != groups.tolist()
    assert any(np.diff(order[at : at + 20]).min() < 0 for at in range(0, 400, 20))


def test_places_are_uniform_enough():
    # Where sample 0 goes over 2000 epochs of 10 samples: each place 200 times, give or take 6 deviations.
    places = np.bincount(
        [int(np.flatnonzero(epoch_order(7, e, 10) == 0)[0]) for e in range(2000)], minlength=10
    )
    assert abs(places - 200).max() < 6 * np.sqrt(200 * 0.9)


@pytest.mark.parametrize(
    "bad", [{"rank": 2}, {"rank": -1}, {"batch_size": 0}, {"position": 11}, {"remainder": "keep"}]
)
def test_impossible_slices_are_refused(bad):
    fields = {"samples": 10, "position": 0, "batch_size": 2, "rank": 0, "world_size": 2, "remainder": "drop"}
    with pytest.raises(UsageError):
        Slices(**(fields | bad))
