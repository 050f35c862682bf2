"""A loader with an overlay gives the batches of a loader on a set that was built with the same deltas and texts."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards import DamageError, ShardSet
from llgbm_shards.errors import UsageError
from support.damage import flipped
from support.edited_set import rewrite
from support.overlays import COUNT, FORMS, build_set, lay, new, write_sources

OPTIONS = {"split": None, "batch_size": 2, "max_text_length": 16, "columns": ("task", "checkpoint")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = write_sources(tmp_path_factory.mktemp("overlay"))
    build_set(root, "base", "old", "bert")
    build_set(root, "fresh", "new", "qwen2", forms=FORMS)
    build_set(root, "bare", None, None)
    lay(root, **new(root))
    lay(root, "deltas", deltas=root / "new")
    lay(root, "texts", forms=("answer",))
    return root


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made, tmp_path / "own")


def batches(path, **options):
    with StreamingLoader(path, **{**OPTIONS, **options}) as loader:
        return list(loader)


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == other[name], name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "mix", "num_texts": 2, "shuffle": False},
        {"fields": ("delta",)},
        {"fields": ("condition", "scales"), "verify": "off"},
        {"fields": ("weights", "delta"), "view": "flat"},
        {"split": "val"},
        {"filters": [("task", "in", ["alpha", "beta"])]},
        {"filters": [("delta_norm", ">", 5.5)]},
        {"shuffle": "shards"},
    ],
    ids=str,
)
def test_the_same_batches_as_a_fresh_set(made, options):
    fresh = batches(made / "fresh", **options)
    over = batches(made / "base", overlay=made / "over", **options)
    assert len(over) == len(fresh) > 0
    for one, other in zip(over, fresh, strict=True):
        same(one, other)


@pytest.mark.parametrize("member", ["texts", "delta", "pieces"])
def test_filters_on_sizes_are_of_the_set_that_a_member_is_read_from(made, member):
    name = f"{member}.size"
    sizes = ShardSet(made / "fresh").index([name]).column(name).to_pylist()
    for size in {*sizes, 0}:
        filters = [(name, "<=", size)]
        wanted = [key for key, one in zip(ShardSet(made / "fresh").keys, sizes, strict=True) if one <= size]
        if wanted:
            assert (
                ShardDataset(made / "base", overlay=made / "over", split=None, filters=filters).keys == wanted
            )
        else:
            with pytest.raises(UsageError, match="no sample is chosen"):
                ShardDataset(made / "base", overlay=made / "over", split=None, filters=filters)
    with pytest.raises(
        UsageError, match=r"the index has no column 'overlay:delta\.size': expected key, split"
    ):
        ShardDataset(made / "base", overlay=made / "over", filters=[("overlay:delta.size", ">", 0)])


def test_what_the_overlay_has_not_comes_from_the_base(made):
    base, fresh = ShardDataset(made / "base", split=None), ShardDataset(made / "fresh", split=None)
    over = ShardDataset(made / "base", split=None, overlay=made / "deltas")
    for number in range(COUNT):
        row = over[number]
        for name in base[number]:
            of = fresh if name in ("delta", "has_delta") else base
            same({name: row[name]}, {name: of[number][name]})
    texts = ShardDataset(made / "base", split=None, overlay=made / "texts", form="answer")
    assert texts[0]["delta"].equal(base[0]["delta"])
    assert texts[0]["condition_ids"].shape == base[0]["condition_ids"].shape
    with pytest.raises(UsageError, match="form"):
        ShardDataset(made / "base", split=None, overlay=made / "texts")


def test_missing_deltas_are_the_overlays_own(own):
    manifest = own / "new" / "manifest.json"
    value = json.loads(manifest.read_text())
    value["adapters"] = {
        key: info for key, info in value["adapters"].items() if not info["path"].endswith("run_001")
    }
    manifest.write_text(json.dumps(value))
    lay(own, "zeros", deltas=own / "new", missing_delta="zeros")
    (batch,) = batches(own / "base", overlay=own / "zeros", batch_size=COUNT, fields=("delta",))
    without = [path for path, has in zip(batch["checkpoint"], batch["has_delta"], strict=True) if not has]
    assert without == ["beta/run_001"]
    chosen = batches(own / "base", overlay=own / "zeros", filters=[("has_delta", "==", True)])
    assert sum(len(one["keys"]) for one in chosen) == COUNT - 1


def test_several_sets_each_with_its_own_or_none(own):
    rewrite(own / "fresh", lambda _, data: data)  # other bytes of the index: another digest
    sets, overlays = [own / "fresh", own / "base"], [None, own / "over"]
    both = ShardDataset(sets, overlay=overlays, split=None)
    assert len(both) == 2 * COUNT
    same(both[1], both[COUNT + 1])
    with pytest.raises(UsageError, match="differ in"):
        ShardDataset(sets, overlay=[None, own / "deltas"], split=None)
    for wrong in ([own / "over"], own / "over"):
        with pytest.raises(UsageError, match="for each of the sets: 2"):
            ShardDataset(sets, overlay=wrong, split=None)


def test_an_overlay_does_not_change_the_order_of_shards(own):
    second = build_set(own, "second", "new", "qwen2", forms=FORMS, seed=1).path
    options = {"shuffle": "shards", "batch_size": 1, "fields": ("delta",)}
    for epoch_seed in range(4):
        fresh = batches([own / "fresh", second], **options, seed=epoch_seed)
        over = batches([own / "base", second], overlay=[own / "over", None], **options, seed=epoch_seed)
        assert [one["keys"] for one in over] == [one["keys"] for one in fresh]


def test_another_base_is_refused(made):
    base, fresh = ShardSet(made / "base").digest, ShardSet(made / "fresh").digest
    with pytest.raises(
        UsageError, match=f"an overlay of another set: expected its base, digest {base}, got digest {fresh}"
    ):
        StreamingLoader(made / "fresh", overlay=made / "over")
    with pytest.raises(UsageError, match="not an overlay"):
        StreamingLoader(made / "base", overlay=made / "fresh")
    with pytest.raises(UsageError, match="an overlay of another set"):
        StreamingLoader(made / "over", overlay=made / "over")


def test_missing_and_other_samples_are_refused(own):
    rewrite(own / "over", lambda _, data: data, columns=lambda row: {**row, "key": row["key"] + "x"})
    with pytest.raises(UsageError, match="other samples than its base: expected the 9 keys"):
        ShardDataset(own / "base", overlay=own / "over")


def test_a_damaged_overlay_is_named(own):
    opened = ShardSet(own / "over")
    extent = next(one for one in opened.extents(0) if one.field == "delta")
    with (
        flipped(own / "over" / extent.shard, 8 * (extent.offset + 140)),
        pytest.raises(DamageError) as caught,
    ):
        ShardDataset(own / "base", overlay=own / "over", split=None)[0]
    error = caught.value
    assert (error.shard, error.key, error.member) == (extent.shard, extent.key, "delta.npy")
    # The base has a shard of this name too.
    assert f"It is of {own / 'over'}." in error.do
    (own / "over" / extent.shard).unlink()
    with pytest.raises(DamageError, match="the shard is missing"):
        ShardDataset(own / "base", overlay=own / "over", split=None)[0]
    (own / "over" / "shardset.json").unlink()
    with pytest.raises(DamageError):
        ShardDataset(own / "base", overlay=own / "over")


def test_a_state_is_of_its_overlay(made):
    with StreamingLoader(made / "base", overlay=made / "over", **OPTIONS) as loader:
        whole = list(loader)
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
    assert state["overlays"] == [ShardSet(made / "over").digest]
    for other in ({"overlay": made / "deltas"}, {}):
        with (
            StreamingLoader(made / "base", **other, **OPTIONS) as loader,
            pytest.raises(UsageError, match="the state is of another loader, by its overlays"),
        ):
            loader.load_state_dict(state)
    with StreamingLoader(made / "base", overlay=made / "over", **OPTIONS) as loader:
        loader.load_state_dict(state)
        for one, other in zip(loader, whole[1:], strict=True):
            same(one, other)


def test_the_base_is_pinned(made):
    digest = ShardSet(made / "base").digest
    assert len(ShardDataset(made / "base", overlay=made / "over", expect_digest=digest, split=None)) == COUNT
    with pytest.raises(UsageError, match="another set than expected"):
        ShardDataset(made / "base", overlay=made / "over", expect_digest=ShardSet(made / "over").digest)


def test_an_overlay_alone(made):
    (alone,) = batches(made / "over", batch_size=COUNT, shuffle=False)
    (fresh,) = batches(made / "fresh", batch_size=COUNT, shuffle=False, fields=("condition", "delta"))
    same(alone, fresh)
    with pytest.raises(
        UsageError, match=r"has no tokens.*open the set it was made of, and name this one as overlay="
    ):
        StreamingLoader(made / "over", fields=("tokens", "delta"))


def test_a_base_without_deltas_and_texts(own):
    shutil.rmtree(own / "base")
    shutil.copytree(own / "bare", own / "base")
    lay(own, "all", **new(own))
    for one, other in zip(batches(own / "base", overlay=own / "all"), batches(own / "fresh"), strict=True):
        same(one, other)


def test_it_goes_to_another_process(made):
    dataset = ShardDataset(made / "base", overlay=made / "over", split=None)
    same(pickle.loads(pickle.dumps(dataset))[3], dataset[3])
