"""Resume: the state counts what was received, fits any world, and refuses what it is not of."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_loader import StreamingLoader
from llgbm_shards.errors import UsageError
from support.synthetic import write_set

FAST = {"fields": ["delta"], "verify": "off", "readers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("state") / "set", 29, shard_samples=6)


def _keys(batches):
    return [key for batch in batches for key in batch["keys"] if key]


def _take(loader, count):
    iterator = iter(loader)
    taken = [next(iterator) for _ in range(count)]
    del iterator
    return taken


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
)
def test_resume_on_another_world_and_batch_size(made, world, batch, steps, world2, batch2, shuffle):
    options = {**FAST, "shuffle": shuffle, "remainder": "pad", "seed": 3}
    one = StreamingLoader(made.path, batch_size=1, rank=0, world_size=1, **options)
    whole, following = _keys(one), _keys(one)
    first = [
        StreamingLoader(made.path, batch_size=batch, rank=r, world_size=world, **options)
        for r in range(world)
    ]
    steps = min(steps, len(first[0]))
    taken = [_take(loader, steps) for loader in first]
    states = [json.dumps(loader.state_dict()) for loader in first]
    assert len(set(states)) == 1
    second = [
        StreamingLoader(made.path, batch_size=batch2, rank=r, world_size=world2, **options)
        for r in range(world2)
    ]
    rest = []
    for loader in second:
        loader.load_state_dict(json.loads(states[0]))
        rest.append(list(loader))
    assert len({len(part) for part in rest}) == 1
    seen = [key for step in range(steps) for part in taken for key in part[step]["keys"] if key]
    later = [key for step in range(len(rest[0])) for part in rest for key in part[step]["keys"] if key]
    # Who has all of an epoch goes on with the next.
    assert seen + later == (whole + following if steps == len(first[0]) else whole)


def test_the_state_counts_what_was_received_not_what_was_read_ahead(made):
    loader = StreamingLoader(made.path, batch_size=2, prefetch_batches=4, fields=["delta"])
    iterator = iter(loader)
    assert loader.state_dict()["position"] == 0
    for count in range(1, 4):
        next(iterator)
        assert loader.state_dict()["position"] == 2 * count
    iterator.close()
    assert loader.state_dict()["position"] == 6


def test_a_whole_epoch_moves_on_and_resumed_batches_are_equal(made):
    loader = StreamingLoader(made.path, batch_size=4, num_texts=2)
    first, second = list(loader), list(loader)
    assert loader.state_dict()["epoch"] == 2
    assert _keys(first) != _keys(second)
    resumed = StreamingLoader(made.path, batch_size=4, num_texts=2)
    state = {**loader.state_dict(), "epoch": 1, "position": 8}
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # as a training loop does: must not forget the place
    for got, want in zip(resumed, second[2:], strict=True):
        assert got["keys"] == want["keys"]
        assert torch.equal(got["condition_ids"], want["condition_ids"])
        assert torch.equal(got["tokens"].nan_to_num(), want["tokens"].nan_to_num())
    assert resumed.state_dict()["epoch"] == 2


def test_the_last_batch_ends_the_epoch_though_nobody_asks_for_more(made, caplog):
    wanted = StreamingLoader(made.path, batch_size=4, **FAST)
    epochs = [_keys(wanted), _keys(wanted), _keys(wanted)]
    loader = StreamingLoader(made.path, batch_size=4, **FAST)
    with caplog.at_level("INFO", "llgbm_loader"):
        iterator = iter(loader)
        got = _keys(next(iterator) for _ in range(len(loader)))
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)
        loader.set_epoch(1)
        assert next(iterator, None) is None
        assert (loader.stats().epochs, len(caplog.records)) == (1, 1)
    assert got == epochs[0]
    assert _keys(itertools.islice(loader, len(loader))) == epochs[1]
    assert _keys(batch for _, batch in zip(range(len(loader)), loader, strict=False)) == epochs[2]
    assert loader.stats().epochs == 3


def test_a_place_with_no_whole_batch_behind_it_gives_none_and_moves_on(made):
    loader = StreamingLoader(made.path, batch_size=4, **FAST)
    loader.load_state_dict({**loader.state_dict(), "position": 28})
    assert list(loader) == []
    assert loader.state_dict()["epoch"] == 1


def test_set_epoch_chooses_and_leaving_early_begins_again(made):
    loader = StreamingLoader(made.path, batch_size=4, **FAST)
    zero, one = _keys(loader), _keys(loader)
    loader.set_epoch(0)
    assert _keys(_take(loader, 2)) == zero[:8]
    assert _keys(_take(loader, 1)) == zero[:4]
    loader.set_epoch(1)
    assert loader.state_dict()["position"] == 0
    assert _keys(loader) == one
    loader.set_epoch(1)
    assert _keys(loader) == one
    for bad in (-1, 1.0, "1", True):
        with pytest.raises(UsageError):
            loader.set_epoch(bad)


def test_composed_pipelines_share_the_state_and_their_stages_run(made):
    loader = StreamingLoader(made.path, batch_size=4, **FAST)

    def count(source):
        for batch in source:
            yield len(batch["keys"])

    composed = loader.compose(count)
    iterator = iter(composed)
    assert [next(iterator), next(iterator)] == [4, 4]
    assert loader.state_dict() == composed.state_dict()
    assert loader.state_dict()["position"] == 8
    iterator.close()
    composed.set_epoch(5)
    assert loader.state_dict()["epoch"] == 5
    assert list(composed) == [4] * 7
    assert len(composed) == len(loader) == 7


def test_a_pipeline_may_repeat_the_loader(made):
    loader = StreamingLoader(made.path, batch_size=29, **FAST)
    batches = list(loader.compose().repeat(3))
    assert len(batches) == 3
    assert len({tuple(batch["keys"]) for batch in batches}) == 3


def test_with_epoch_leaves_an_iteration_early(made):
    loader = StreamingLoader(made.path, batch_size=4, **FAST)
    whole = _keys(loader)
    loader.set_epoch(0)
    short = loader.compose().with_epoch(3)
    assert _keys(short) == whole[:12]
    assert _keys(short) == whole[:12]
    loader.load_state_dict(loader.state_dict())
    assert _keys(short) == whole[12:24]


def test_only_the_newest_iteration_counts(made):
    loader = StreamingLoader(made.path, batch_size=2, **FAST)
    old, new = iter(loader), iter(loader)
    next(old)
    next(new)
    next(old)
    next(old)
    assert loader.state_dict()["position"] == 2
    assert len(list(old)) == 11
    assert loader.state_dict()["epoch"] == 0


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"shuffle": False}, "shuffle"),
        ({"shuffle": "shards"}, "shuffle"),
        ({"filters": [("task", "=", "arc_e")]}, "filters"),
        ({"split": None}, "split"),
    ],
)
def test_a_state_of_something_else_is_refused_and_said_which(made, other, named):
    state = StreamingLoader(made.path, **FAST).state_dict()
    with pytest.raises(UsageError, match=f"of another [a-z, ]*{named}"):
        StreamingLoader(made.path, **FAST, **other).load_state_dict(state)


def test_a_state_of_another_set_is_refused(made, tmp_path):
    other = write_set(tmp_path / "other", 29, seed=1)
    state = StreamingLoader(other.path, **FAST).state_dict()
    with pytest.raises(UsageError, match="by its sets"):
        StreamingLoader(made.path, **FAST).load_state_dict(state)


def test_filters_in_another_order_of_values_are_the_same(made):
    one = StreamingLoader(made.path, **FAST, filters=[("task", "in", ["arc_e", "copa"])])
    other = StreamingLoader(made.path, **FAST, filters=[["task", "in", {"copa", "arc_e"}]])
    other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("array", [list, np.array, pa.array, lambda values: pa.chunked_array([values])])
def test_a_long_array_in_a_filter_is_all_of_it(made, array):
    """Their texts are elided in the middle, where these two differ."""
    names = [f"task_{number}" for number in range(5000)]
    one, other = ["arc_e", *names], ["arc_e", *names]
    other[2500] = "copa"
    states = []
    for values in (one, other):
        loader = StreamingLoader(made.path, **FAST, filters=[("task", "in", array(values))])
        states.append(loader.state_dict())
    assert states[0]["filters"] != states[1]["filters"]
    StreamingLoader(made.path, **FAST, filters=[("task", "in", one)]).load_state_dict(states[0])


def test_two_ways_to_write_a_filter_are_the_same(made):
    one = StreamingLoader(made.path, **FAST, filters=[("rank", "=", 2)])
    other = StreamingLoader(made.path, **FAST, filters=[[("rank", "==", np.int64(2))]])
    other.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"position": -1},
        {"position": 30},
        {"position": 1.5},
        {"position": True},
        {"epoch": -1},
        {"epoch": None},
        {"samples": 28},
    ],
)
def test_a_broken_state_is_refused(made, damage):
    loader = StreamingLoader(made.path, **FAST)
    with pytest.raises(UsageError):
        loader.load_state_dict(loader.state_dict() | damage)
    with pytest.raises(UsageError):
        loader.load_state_dict("state")


def test_the_state_is_small_json(made):
    text = json.dumps(StreamingLoader([made.path], **FAST).state_dict())
    assert len(text) < 500
    assert json.loads(text)["version"] == 1
