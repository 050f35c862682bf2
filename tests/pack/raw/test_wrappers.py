"""DeltaAugmentedDataset, DnDDatasetWithDelta and wrap_dnd_dataset around datasets of many forms."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from llgbm_pack import DeltaCache, LoraTokenizer2D
from llgbm_pack.raw import (
    DeltaAugmentedDataset,
    DnDDatasetWithDelta,
    Text2Qwen25LoRA_DeltaDataset,
    wrap_dnd_dataset,
)
from llgbm_pack.raw.weights import token_tensors
from llgbm_shards.errors import UsageError
from support.tiny_tokenizers import tiny_tokenizer
from support.tiny_zoo import write_deltas, write_zoo

WIDTH = 5
#: Checkpoints of the base datasets; the third has no delta.
PATHS = ["zoo/arc/run_1", "zoo/arc/run_10", "zoo/math/other", "zoo/math/run_10"]
HAVE = [0, 1, 3]


@pytest.fixture
def cache(tmp_path):
    deltas = {PATHS[idx]: np.full(WIDTH, idx + 1, np.float32) for idx in HAVE}
    DeltaCache(tmp_path / "deltas").save_deltas(deltas)
    return DeltaCache(tmp_path / "deltas")


class Base(Dataset):
    """Items of a form asked for; counts how many were read."""

    def __init__(self, item="tuple", paths=PATHS):
        self.item, self.paths, self.read = item, paths, 0

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, idx):
        self.read += 1
        tokens, condition = torch.full((2, 3, 3), float(idx)), torch.arange(4) + idx
        mask = {"input_ids": condition[None], "attention_mask": torch.ones(1, 4, dtype=torch.long)}
        return {
            "tuple": (tokens, condition),
            "path": (tokens, condition, self.paths[idx]),
            "list": [tokens, condition, Path(self.paths[idx]), "more"],
            "numpy": (tokens.numpy(), condition),
            "encoded": (tokens, mask),
            "words": (tokens, f"text {idx}"),
            "dict": {"tokens": tokens, "condition": condition, "name": f"n{idx}", "number": idx},
            "dict ids": {"tokens": tokens.numpy(), "condition_ids": condition, "path": self.paths[idx]},
            "dict encoded": {"tokens": tokens, **mask, "extra": {"a": tokens, "b": "c"}},
            "bare": tokens,
        }[self.item]


def telling(how, item="tuple", paths=PATHS):
    """A base dataset that tells its paths in one of the known ways."""
    base = Base(item, paths)
    if how == "method":
        base.get_checkpoint_path = paths.__getitem__
    else:
        name, _, form = how.partition(" of ")
        make = {"": str, "paths": Path, "files": lambda path: f"{path}/adapter_model.safetensors"}
        maps = {
            "path": lambda path: {"path": path},
            "checkpoint_path": lambda path: {"checkpoint_path": path},
        }
        setattr(base, name, [{**make, **maps}[form](path) for path in paths])
    return base


WAYS = [
    "method",
    "checkpoint_paths",
    "checkpoint_paths of paths",
    "checkpoint_paths of files",
    "checkpoints",
    "checkpoints of path",
    "samples of path",
    "samples of checkpoint_path",
]


@pytest.mark.parametrize("how", WAYS)
def test_augmented_takes_paths_however_they_are_told(cache, how):
    base = telling(how)
    dataset = DeltaAugmentedDataset(base, cache)
    assert len(dataset) == 3
    assert dataset.valid_indices == HAVE
    assert base.read == 0
    for item, idx in zip([dataset[0], dataset[1], dataset[2]], HAVE, strict=True):
        tokens, condition, delta = item
        assert tokens[0, 0, 0] == idx
        assert torch.equal(condition, torch.arange(4) + idx)
        assert torch.equal(delta, torch.full((WIDTH,), idx + 1.0))
    assert base.read == 3


@pytest.mark.parametrize("how", WAYS)
def test_dnd_takes_paths_however_they_are_told(cache, how):
    base = telling(how)
    dataset = DnDDatasetWithDelta(base, cache.cache_dir)
    assert len(dataset) == 4
    assert base.read == 0
    assert [delta[0].item() for _, _, delta in dataset] == [1, 2, 0, 4]
    assert [dataset.has_delta(idx) for idx in range(4)] == [True, True, False, True]
    assert dataset.hidden_size == WIDTH
    assert [skip.reason for skip in dataset.missing] == ["no delta in the cache"]
    assert base.read == 4


@pytest.mark.parametrize("item", ["path", "list", "dict ids"])
def test_items_are_read_for_their_paths_only_when_nothing_else_tells(cache, item, caplog):
    """Once, at the first need, and not at construction."""
    base = Base(item)
    dataset = DeltaAugmentedDataset(base, cache)
    wrapped = DnDDatasetWithDelta(base, cache.cache_dir)
    assert base.read == 0
    with caplog.at_level(logging.WARNING):
        assert len(dataset) == 3
    assert "items are read for their paths" in caplog.text
    read = base.read
    assert len(dataset) == 3
    assert dataset.has_delta(2)
    assert base.read == read
    assert [dataset[idx][2][0].item() for idx in range(3)] == [1, 2, 4]
    assert wrapped.has_delta(3)
    assert not wrapped.has_delta(2)


def test_a_dataset_that_does_not_tell_is_not_filled_with_zeros(cache):
    base = Base()
    for dataset in (DeltaAugmentedDataset(base, cache, False), DnDDatasetWithDelta(base, cache.cache_dir)):
        with pytest.raises(UsageError, match="does not tell its checkpoints"):
            dataset[0]
    assert base.read == 2


def test_a_list_of_another_length_is_not_the_items(cache):
    base = telling("method", item="path")
    del base.get_checkpoint_path
    base.checkpoint_paths = [
        *PATHS[1:],
        *PATHS,
    ]  # joined by position these would be other checkpoints' deltas
    base.checkpoints = PATHS
    assert [delta[0].item() for _, _, delta in DeltaAugmentedDataset(base, cache)] == [1, 2, 4]


def test_the_items_of_the_known_dataset_are_its_valid_checkpoints(cache):
    base = Base()
    base.checkpoint_paths = ["zoo/arc/left_out", *PATHS]
    base.valid_checkpoints = PATHS
    assert [delta[0].item() for _, _, delta in DeltaAugmentedDataset(base, cache)] == [1, 2, 4]


def test_paths_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = f"{tmp_path}/{PATHS[0]}", f"/elsewhere/{PATHS[0]}"
    DeltaCache("deltas").save_delta(here, np.zeros(WIDTH, np.float32))
    dataset = DeltaAugmentedDataset(telling("checkpoints", paths=[f"./{PATHS[0]}"]), "deltas")
    assert dataset[0][2][0] == 0
    DeltaCache("deltas").save_delta(there, np.ones(WIDTH, np.float32))
    with pytest.raises(UsageError, match="more than one delta"):
        DeltaAugmentedDataset(telling("checkpoints", paths=[f"./{PATHS[0]}"]), "deltas")


def test_missing_deltas_as_zeros(cache, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = DeltaAugmentedDataset(telling("method"), cache, require_delta=False)
    assert "1 of 4 items have no delta" in caplog.text
    assert "zoo/math/other" in caplog.text
    assert len(dataset) == 4
    assert dataset.skipped == []
    assert torch.equal(dataset[2][2], torch.zeros(WIDTH))
    assert [dataset[idx].has_delta for idx in range(4)] == [True, True, False, True]
    assert [dataset.has_delta(idx) for idx in range(4)] == [True, True, False, True]
    assert dataset.collate_fn(list(dataset))["has_delta"].tolist() == [True, True, False, True]


def test_missing_deltas_left_out(cache, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = DeltaAugmentedDataset(telling("method"), cache)
    assert "1 of 4 items have no delta (left out): zoo/math/other" in caplog.text
    assert [(skip.checkpoint, skip.fault) for skip in dataset.skipped] == [("zoo/math/other", False)]
    assert dataset.get_checkpoint_path(2) == PATHS[3]


def test_items_without_a_path(cache):
    base = telling("method", paths=[PATHS[0], None, "", PATHS[1]])
    dataset = DnDDatasetWithDelta(base, cache.cache_dir)
    assert [dataset.has_delta(idx) for idx in range(4)] == [True, False, False, True]
    assert [skip.checkpoint for skip in dataset.missing] == ["item 1", "item 2"]
    assert dataset.idx_to_path == {0: PATHS[0], 3: PATHS[1]}


def test_repeated_checkpoints_share_their_delta(cache):
    dataset = DnDDatasetWithDelta(telling("checkpoints", paths=[PATHS[0]] * 3), cache.cache_dir)
    assert [delta[0].item() for _, _, delta in dataset] == [1, 1, 1]


def test_moved_checkpoints_are_found_and_prefixes_are_not_taken_for_them(tmp_path):
    """run_1 is in run_10, arc/run_10 is not math/run_10."""
    cache = DeltaCache(tmp_path / "deltas")
    cache.save_deltas(
        {f"/old/{PATHS[1]}": np.ones(WIDTH, np.float32), f"/old/{PATHS[3]}": np.full(WIDTH, 2, np.float32)}
    )
    base = telling("checkpoint_paths", paths=[f"/new/{path}" for path in PATHS])
    dataset = DnDDatasetWithDelta(base, tmp_path / "deltas")
    assert [delta[0].item() for _, _, delta in dataset] == [0, 1, 0, 2]
    assert set(dataset.all_deltas) == {f"/new/{PATHS[1]}", f"/new/{PATHS[3]}"}
    assert dataset.all_deltas[f"/new/{PATHS[3]}"][0] == 2


def test_faulty_deltas_are_zeros_with_a_reason(cache):
    cache.entries()[0].file.write_bytes(b"x")
    dataset = DnDDatasetWithDelta(telling("method"), cache.cache_dir)
    assert torch.equal(dataset[0][2], torch.zeros(WIDTH))
    assert not dataset.has_delta(0)
    assert [skip.fault for skip in dataset.missing] == [True, False]
    assert "not an npy array" in dataset.missing[0].reason


def test_two_deltas_for_one_checkpoint(cache):
    for value, prefix in enumerate("ab"):
        cache.save_delta(f"/{prefix}/{PATHS[2]}", np.full(WIDTH, value, np.float32))
    with pytest.raises(UsageError, match="more than one delta"):
        DeltaAugmentedDataset(telling("method"), cache)


# forms of items


@pytest.mark.parametrize("item", ["tuple", "path", "list", "numpy", "dict", "dict ids"])
def test_augmented_items_and_batches(cache, item):
    dataset = DeltaAugmentedDataset(telling("method", item), cache)
    sample = dataset[1]
    assert isinstance(sample, tuple)
    assert len(sample) == 3
    assert all(isinstance(part, torch.Tensor) for part in sample)
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate_fn)))
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "tokens": (3, 2, 3, 3),
        "condition": (3, 4),
        "delta": (3, WIDTH),
        "has_delta": (3,),
    }
    assert batch["delta"].dtype == torch.float32
    assert batch["tokens"][:, 0, 0, 0].tolist() == HAVE


@pytest.mark.parametrize("item", ["encoded", "dict encoded"])
def test_conditions_from_a_text_tokenizer(cache, item):
    dataset = DeltaAugmentedDataset(telling("method", item), cache)
    condition = dataset.collate_fn(list(dataset))["condition"]
    assert {key: tuple(value.shape) for key, value in condition.items()} == {
        "input_ids": (3, 1, 4),
        "attention_mask": (3, 1, 4),
    }
    assert condition["input_ids"][:, 0, 0].tolist() == HAVE


def test_conditions_from_a_real_text_tokenizer(cache):
    base = telling("method")
    encode = tiny_tokenizer("bert")
    texts = ["a", "what is it", "other", "b"]
    options = {"padding": "max_length", "max_length": 6, "truncation": True, "return_tensors": "pt"}
    whole = encode(texts, **options)
    base.__class__ = type(
        "Encoded", (Base,), {"__getitem__": lambda self, idx: (torch.ones(2), encode(texts[idx], **options))}
    )
    dataset = DnDDatasetWithDelta(base, cache.cache_dir)
    condition = dataset.collate_fn_train(list(dataset))["condition"]
    assert torch.equal(condition["input_ids"], whole["input_ids"][:, None])  # one text an item, so K = 1
    assert torch.equal(condition["attention_mask"], whole["attention_mask"][:, None])


def test_conditions_of_other_kinds_come_as_a_list(cache):
    dataset = DeltaAugmentedDataset(telling("method", "words"), cache)
    assert dataset.collate_fn(list(dataset))["condition"] == ["text 0", "text 1", "text 3"]


def test_plain_tuples_can_be_collated(cache):
    rows = [(torch.ones(2, 3, 3), torch.ones(4), torch.ones(5))] * 2
    assert set(DeltaAugmentedDataset.collate_fn(rows)) == {"tokens", "condition", "delta"}


def test_torch_itself_can_collate_and_pickle_items(cache):
    dataset = DeltaAugmentedDataset(telling("method"), cache)
    tokens, _condition, delta = default_collate(list(dataset))
    assert (tokens.shape, delta.shape) == ((3, 2, 3, 3), (3, WIDTH))
    copy = pickle.loads(pickle.dumps(DeltaAugmentedDataset(telling("checkpoints"), cache, False)[2]))
    assert copy.has_delta is False
    assert torch.equal(copy[2], torch.zeros(WIDTH))


def test_augmented_refuses_items_without_tokens_and_condition(cache):
    for item in ("bare",):
        with pytest.raises(UsageError, match="no tokens and condition"):
            DeltaAugmentedDataset(telling("method", item), cache)[0]


@pytest.mark.parametrize(
    ("item", "length", "place"),
    [("tuple", 3, 2), ("path", 4, 2), ("list", 5, 2), ("numpy", 3, 2), ("bare", 2, 1)],
)
def test_dnd_puts_the_delta_after_the_condition(cache, item, length, place):
    base = telling("method", item)
    dataset = DnDDatasetWithDelta(base, cache.cache_dir)
    sample = dataset[3]
    assert isinstance(sample, tuple)
    assert len(sample) == length
    assert torch.equal(sample[place], torch.full((WIDTH,), 4.0))
    if item == "path":
        assert sample[3] == PATHS[3]
    batch = dataset.collate_fn_train([dataset[idx] for idx in range(4)])
    assert batch["tokens"].shape == (4, 2, 3, 3)
    assert batch["delta"].shape == (4, WIDTH)
    assert batch["has_delta"].tolist() == [True, True, False, True]
    assert ("condition" in batch) == (item != "bare")


def test_dnd_adds_to_a_map_without_changing_it(cache):
    base = telling("method", "dict")
    kept = base[0]
    base.__class__ = type("Kept", (Base,), {"__getitem__": lambda self, idx: kept})
    dataset = DnDDatasetWithDelta(base, cache.cache_dir)
    assert set(dataset[0]) == {*kept, "delta", "has_delta"}
    assert "delta" not in kept


def test_dnd_batches_of_maps_keep_every_key(cache):
    dataset = DnDDatasetWithDelta(telling("method", "dict"), cache.cache_dir)
    batch = dataset.collate_fn_train(list(dataset))
    assert batch["name"] == ["n0", "n1", "n2", "n3"]
    assert batch["number"] == [0, 1, 2, 3]
    assert batch["delta"].shape == (4, WIDTH)
    assert batch["has_delta"].tolist() == [True, True, False, True]
    nested = DnDDatasetWithDelta(telling("method", "dict encoded"), cache.cache_dir)
    batch = nested.collate_fn_train(list(nested))
    assert batch["extra"]["a"].shape == (4, 2, 3, 3)
    assert batch["extra"]["b"] == ["c"] * 4


def test_batches_that_do_not_fit_say_so(cache):
    dataset = DnDDatasetWithDelta(telling("method", "dict"), cache.cache_dir)
    items = list(dataset)
    with pytest.raises(UsageError, match="different keys"):
        dataset.collate_fn_train([items[0], {**items[1], "odd": 1}])
    with pytest.raises(UsageError, match="shapes differ"):
        dataset.collate_fn_train([items[0], {**items[1], "tokens": torch.ones(1)}])


def test_fallback_norm(cache):
    base = telling("method")
    assert DnDDatasetWithDelta(base, cache.cache_dir, 0.0).fallback_delta_norm == 0.0
    for norm in (1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="fallback_delta_norm"):
            DnDDatasetWithDelta(base, cache.cache_dir, fallback_delta_norm=norm)


def test_wrap_dnd_dataset(cache, monkeypatch):
    class Told(Base):
        checkpoint_paths = PATHS

    dataset = wrap_dnd_dataset(Told, str(cache.cache_dir), item="dict")
    assert isinstance(dataset, DnDDatasetWithDelta)
    assert dataset[0]["name"] == "n0"
    monkeypatch.chdir(cache.cache_dir.parent)
    assert wrap_dnd_dataset(Told, item="tuple")[3][2][0] == 4  # the directory is called deltas by default


def test_no_cache_no_guessed_width(tmp_path):
    with pytest.raises(UsageError, match="width of a missing delta is not known"):
        DnDDatasetWithDelta(telling("method"), tmp_path / "absent")
    with pytest.raises(UsageError, match="width of a missing delta is not known"):
        DeltaAugmentedDataset(telling("method"), tmp_path / "absent", require_delta=False)
    assert len(DeltaAugmentedDataset(telling("method"), tmp_path / "absent")) == 0
    DeltaCache(tmp_path / "absent").save_base_activation(np.ones(9, np.float32))
    assert DnDDatasetWithDelta(telling("method"), tmp_path / "absent")[0][2].shape == (9,)


def whole_epoch(dataset, **options):
    """All batches joined, with any warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This DataLoader will create")
        batches = list(DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn, **options))
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("tokens", "delta", "has_delta")}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers(cache, workers):
    base = Base("path")
    base.checkpoint_paths = PATHS
    for dataset in (DeltaAugmentedDataset(base, cache), DnDDatasetWithDelta(base, cache.cache_dir)):
        epoch = whole_epoch(dataset, num_workers=workers)
        assert torch.equal(epoch["delta"], torch.stack([item[2] for item in dataset]))
        assert epoch["has_delta"].tolist() == [item.has_delta for item in dataset]


def test_spawned_workers(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 3)
    write_deltas(tmp_path / "deltas", paths[1:])
    arguments = tmp_path / "zoo", LoraTokenizer2D(), tiny_tokenizer("bert"), tmp_path / "deltas", 8
    own = Text2Qwen25LoRA_DeltaDataset(*arguments, require_delta=False)
    wrapped = DnDDatasetWithDelta(own, tmp_path / "deltas")
    assert wrapped.all_deltas.keys() == {str(path) for path in own.valid_checkpoints[1:]}
    epoch = whole_epoch(wrapped, num_workers=2, multiprocessing_context="spawn")
    assert torch.equal(epoch["delta"], torch.stack([item["delta"] for item in own]))
    assert epoch["has_delta"].tolist() == [False, True, True]


def test_a_subset_keeps_its_own_paths(cache):
    dataset = DeltaAugmentedDataset(Subset(telling("checkpoints"), [3, 2, 0]), cache)
    assert [delta[0].item() for _, _, delta in dataset] == [4, 1]


def test_indices(cache):
    dataset = DnDDatasetWithDelta(telling("method"), cache.cache_dir)
    assert dataset[-1][2][0] == dataset[np.int64(3)][2][0] == 4
    for each in (dataset, DeltaAugmentedDataset(telling("method"), cache)):
        with pytest.raises(IndexError):
            each[4]


def test_our_own_dataset_can_be_wrapped(tmp_path):
    """Its checkpoint_paths are longer than itself: joined by position, items would get others' deltas."""
    paths = write_zoo(tmp_path / "zoo", 5)
    write_deltas(tmp_path / "deltas", paths[1:])
    own = Text2Qwen25LoRA_DeltaDataset(
        tmp_path / "zoo", LoraTokenizer2D(), tiny_tokenizer("bert"), tmp_path / "deltas", 8
    )
    assert len(own) == 4
    for _tokens, condition, delta in DeltaAugmentedDataset(own, tmp_path / "deltas"):
        assert set(condition) == {"input_ids", "attention_mask"}
        assert delta.shape == (24,)
    wrapped = DnDDatasetWithDelta(own, tmp_path / "deltas")
    for idx in range(4):
        assert torch.equal(wrapped[idx]["delta"], own[idx]["delta"])
    assert wrapped.collate_fn_train([wrapped[0], wrapped[1]])["checkpoint_path"] == [
        os.fspath(path) for path in own.valid_checkpoints[:2]
    ]


def test_nothing_is_printed(cache, capsys):
    list(DnDDatasetWithDelta(telling("method"), cache.cache_dir))
    list(DeltaAugmentedDataset(telling("method"), cache))
    assert capsys.readouterr() == ("", "")


WRAPPERS = [DeltaAugmentedDataset, DnDDatasetWithDelta]


class Shuffled(Base):
    """Its list of paths is in another order than its items: the fault of joining by position."""

    checkpoint_paths = PATHS[::-1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("item", ["path", "list", "dict ids"])
def test_items_that_say_they_are_another_checkpoint_than_listed(cache, wrapper, item):
    with pytest.raises(UsageError, match=rf"expected {PATHS[3]}, got {PATHS[0]}"):
        wrapper(Shuffled(item), cache)[0]


OWN_PATHS = [
    ("zoo/arc/run_1", "zoo/arc/run_1", True),
    ("zoo/arc/run_1", "./zoo/arc/run_1/adapter_model.safetensors", True),
    ("zoo/arc/run_1", "zoo/arc/run_1/adapter", True),
    ("/data/zoo/arc/run_1", "arc/run_1", True),
    ("arc/run_1", "/data/zoo/arc/run_1", True),
    ("zoo/arc/run_1", "zoo\\arc\\run_1", True),
    ("zoo/arc/7", "zoo/arc/7.safetensors", True),
    ("zoo/arc/run_1", "zoo/math/run_1", False),
    ("zoo/arc/run_1", "zoo/arc/run_10", False),
    ("zoo/arc/run_10", "run_1", False),
    ("/data/zoo/arc/run_1", "/other/zoo/arc/run_1", False),
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("listed", "own", "same"), OWN_PATHS)
def test_own_paths_are_compared_as_paths(tmp_path, wrapper, listed, own, same):
    cache = DeltaCache(tmp_path)
    cache.save_delta(listed, np.ones(WIDTH, np.float32))
    item = {"tokens": torch.ones(1), "condition": torch.ones(1), "checkpoint_path": own}
    base = type("One", (list,), {"checkpoint_paths": [listed]})([item])
    if same:
        assert len(wrapper(base, cache)[0]) >= 3
        return
    with pytest.raises(UsageError, match="another checkpoint"):
        wrapper(base, cache)[0]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_own_paths_through_a_link_are_the_same(tmp_path, wrapper):
    (tmp_path / "zoo/x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "zoo")
    cache = DeltaCache(tmp_path / "deltas")
    cache.save_delta(f"{tmp_path}/zoo/x", np.ones(WIDTH, np.float32))
    base = type("One", (list,), {"checkpoint_paths": [f"{tmp_path}/zoo/x"]})
    assert wrapper(base([(torch.ones(1), torch.ones(1), f"{tmp_path}/link/x")]), cache)[0][2].sum() == WIDTH


@pytest.mark.parametrize("extra", ["It is 1/2 of it.", "run", 7, None])
def test_other_things_in_an_item_are_no_path(cache, extra):
    base = type("Told", (list,), {"checkpoint_paths": PATHS[:1]})
    assert DnDDatasetWithDelta(base([(torch.ones(1), torch.ones(1), extra)]), cache)[0].has_delta
    image = {"tokens": torch.ones(1), "condition": torch.ones(1), "path": "images/1.png"}
    assert DnDDatasetWithDelta(base([image]), cache)[0]["has_delta"]


def test_joined_datasets_keep_their_paths(cache):
    first, second = telling("checkpoints", paths=PATHS[:2]), telling("method", paths=PATHS[2:])
    dataset = DnDDatasetWithDelta(Subset(ConcatDataset([first, second]), [3, 0, 2, 1]), cache)
    assert [delta[0].item() for _, _, delta in dataset] == [4, 1, 0, 2]
    assert first.read + second.read == 4
    dataset = DeltaAugmentedDataset(ConcatDataset([telling("checkpoints", "path"), Base("path")]), cache)
    assert [delta[0].item() for _, _, delta in dataset] == [1, 2, 4, 1, 2, 4]


def test_a_word_is_no_list_of_paths(cache):
    base = Base("path")
    base.checkpoints = "abcd"
    assert len(DeltaAugmentedDataset(base, cache)) == 3


def test_the_map_of_deltas_that_users_know(cache):
    """Index in the base dataset -> delta, None for those that get zeros."""
    dataset = DeltaAugmentedDataset(telling("method"), cache)
    assert list(dataset.delta_map) == HAVE
    np.testing.assert_array_equal(dataset.delta_map[3], np.full(WIDTH, 4, np.float32))
    assert dataset.delta_map.get(2) is None
    dataset = DeltaAugmentedDataset(telling("method"), cache, require_delta=False)
    assert list(dataset.delta_map) == [0, 1, 2, 3]
    assert dataset.delta_map[2] is None
    assert [delta is not None for delta in dataset.delta_map.values()] == [True, True, False, True]
    assert 4 not in dataset.delta_map


def test_spellings_of_one_path_are_one_checkpoint(tmp_path, monkeypatch):
    """Each by itself would be left without its delta by the first, or claim it together with the first."""
    monkeypatch.chdir(tmp_path)
    DeltaCache("deltas").save_delta("zoo/x", np.ones(WIDTH, np.float32))
    spellings = ["zoo/x", f"{tmp_path}/zoo/x", "./zoo/y/../x", "zoo/x/", "zoo/x/adapter_model.safetensors"]
    dataset = DnDDatasetWithDelta(telling("checkpoints", paths=spellings), "deltas")
    assert [dataset.has_delta(idx) for idx in range(5)] == [True] * 5
    monkeypatch.chdir("/")
    assert [dataset.has_delta(idx) for idx in range(5)] == [True] * 5
    assert set(dataset.all_deltas) == set(spellings)


@pytest.mark.parametrize("recorded", ["zoo/arc/4", "zoo/arc/4.safetensors", "/old/zoo/arc/4.safetensors"])
def test_checkpoints_that_are_one_file(tmp_path, recorded):
    DeltaCache(tmp_path).save_delta(recorded, np.ones(WIDTH, np.float32))
    paths = [f"zoo/arc/{number}.safetensors" for number in (3, 4)]
    dataset = DnDDatasetWithDelta(telling("checkpoints", paths=paths), tmp_path)
    assert [dataset.has_delta(idx) for idx in range(2)] == [False, True]


def test_paths_in_an_array(cache):
    base = Base()
    base.checkpoint_paths = np.array(PATHS)
    assert len(DeltaAugmentedDataset(base, cache)) == 3


@pytest.mark.parametrize(
    "delta",
    [torch.ones(WIDTH, dtype=torch.bfloat16), torch.ones(WIDTH, requires_grad=True), [1.0] * WIDTH],
)
def test_foreign_caches_may_hold_tensors_and_lists(delta):
    foreign = type("Foreign", (), {"get_all_deltas": lambda self: {Path(PATHS[0]): delta}})()
    dataset = DnDDatasetWithDelta(telling("checkpoints"), foreign)
    assert torch.equal(dataset[0][2], torch.ones(WIDTH))
    assert dataset.has_delta(0)


@pytest.mark.parametrize("delta", ["abc", None, [[1.0], [1.0, 2.0]], object(), np.array([1e300])])
def test_what_a_foreign_cache_holds_that_is_no_delta(delta):
    found = {PATHS[0]: delta, PATHS[1]: np.ones(WIDTH)}
    foreign = type("Foreign", (), {"get_all_deltas": lambda self: found})()
    dataset = DnDDatasetWithDelta(telling("checkpoints"), foreign)
    assert "not a delta" in dataset.missing[0].reason
    assert not dataset.has_delta(0)


def test_tensors_leave_their_gradients_behind(cache):
    """A worker of torch cannot send them, and says so by hanging."""
    grown = torch.ones(2, 3, 3, requires_grad=True) * 2
    rows = [(grown, {"input_ids": torch.ones(4)}, torch.ones(WIDTH))] * 2
    assert not DeltaAugmentedDataset.collate_fn(rows)["tokens"].requires_grad
    assert not token_tensors((grown, grown[:, 0, :2]))[0].requires_grad
    assert not token_tensors((grown, grown[:, 0, :2]))[1].requires_grad
