"""The wrappers around datasets that state any length and go round a few checkpoints, K texts an item."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from llgbm_pack import DeltaCache
from llgbm_pack.raw import DeltaAugmentedDataset, DnDDatasetWithDelta, wrap_dnd_dataset
from llgbm_pack.raw.repeats import ChosenIndices, Cycle, ItemPaths
from llgbm_shards.errors import UsageError
from support.dnd_like import LENGTH, RepeatingDataset

pytestmark = pytest.mark.slow

WIDTH = 5
#: The third has no delta.
PATHS = [f"data/arc/{name}.safetensors" for name in ("b10", "b1", "c", "a")]
HAVE = [0, 1, 3]
HUGE = 5_121_000
WRAPPERS = [DeltaAugmentedDataset, DnDDatasetWithDelta]


@pytest.fixture
def cache(tmp_path):
    deltas = {PATHS[idx]: np.full(WIDTH, idx + 1, np.float32) for idx in HAVE}
    DeltaCache(tmp_path / "deltas").save_deltas(deltas)
    return DeltaCache(tmp_path / "deltas")


class InMemory:
    """A cache whose reading takes no memory worth measuring."""

    def get_all_deltas(self):
        return {PATHS[idx]: np.full(WIDTH, idx + 1, np.float32) for idx in HAVE}


# conditions of K texts


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("form", ["encoding", "dict", "lists"])
@pytest.mark.parametrize("texts", [1, 3])
def test_conditions_of_several_texts(cache, wrapper, form, texts):
    base = RepeatingDataset(PATHS, 12, texts, form)
    dataset = wrapper(base, cache)
    batch = dataset.collate_fn([dataset[0], dataset[1]])
    condition = batch["condition"]
    assert set(condition) == set(base.condition(0)) >= {"input_ids", "attention_mask"}
    for key, value in condition.items():
        assert value.shape == (2, texts, LENGTH)
        assert value.dtype == torch.int64
        whole = [torch.as_tensor(base.condition(idx)[key]) for idx in (0, 1)]
        assert torch.equal(value, torch.stack(whole))
    assert batch["tokens"].shape == (2, 3, 4, 6)
    assert batch["tokens"].dtype == torch.bfloat16
    assert batch["delta"].shape == (2, WIDTH)
    assert batch["has_delta"].tolist() == [True, True]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")], ids=["here", "fork", "spawn"]
)
def test_an_epoch_in_workers(cache, wrapper, workers, start):
    dataset = wrapper(RepeatingDataset(PATHS, 10), cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This DataLoader will create")
        options = {"num_workers": workers, "multiprocessing_context": start}
        batches = list(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate_fn, **options))
    kept = wrapper is DnDDatasetWithDelta
    places = [idx % 4 for idx in range(10) if kept or idx % 4 in HAVE]
    deltas = torch.cat([batch["delta"] for batch in batches])[:, 0].tolist()
    assert deltas == [place + 1 if place in HAVE else 0 for place in places]
    assert torch.cat([batch["tokens"] for batch in batches])[:, 0, 0, 0].tolist() == places
    ids = torch.cat([batch["condition"]["input_ids"] for batch in batches])
    assert ids.shape == (len(places), 2, LENGTH)


def test_encodings_that_do_not_fit_say_so(cache):
    rows = [(torch.ones(1), {"input_ids": torch.ones(2, 4), "x": torch.full((2,), 0.5)}, torch.ones(1))] * 2
    collate = DeltaAugmentedDataset.collate_fn
    assert torch.equal(collate(rows)["condition"]["x"], torch.full((2, 2), 0.5))
    other = (rows[0][0], {"input_ids": torch.ones(2, 4)}, rows[0][2])
    for mixed in ([rows[0], other], [other, rows[0]]):
        with pytest.raises(UsageError, match="different keys"):
            collate(mixed)
    more = (other[0], {"input_ids": torch.ones(3, 4)}, other[2])
    with pytest.raises(UsageError, match="shapes differ"):
        collate([other, more])
    with pytest.raises(UsageError, match="lists that are no tensor"):
        collate([(other[0], {"input_ids": [[1, 2], [3]]}, other[2])])


# repeated checkpoints


@pytest.mark.parametrize("name", ["checkpoints", "checkpoint_paths", "samples"])
def test_a_huge_dataset_is_wrapped_without_reading_an_item(name):
    base = RepeatingDataset(PATHS, HUGE)
    listed = [{"path": path} for path in PATHS] if name == "samples" else PATHS
    base.__dict__[name], kept = listed, base.__dict__.pop("checkpoints")
    tracemalloc.start()
    augmented, wrapped = DeltaAugmentedDataset(base, InMemory()), DnDDatasetWithDelta(base, InMemory())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # a list of its indices alone would be forty of these
    assert base.read == 0
    base.checkpoints = kept if name != "checkpoints" else listed
    assert (len(augmented), len(wrapped)) == (HUGE // 4 * 3, HUGE)
    assert [skip.checkpoint for skip in wrapped.missing] == [PATHS[2]]
    assert [skip.checkpoint for skip in augmented.skipped] == [PATHS[2]]
    for idx in (0, 1, 3, 4, 2_000_001, HUGE - 1, -1):
        place = idx % HUGE % 4
        assert wrapped.get_checkpoint_path(idx) == PATHS[place]
        assert wrapped[idx][2][0] == (place + 1 if place in HAVE else 0)
    for number in (0, 1, 2, 3, 1_000_000, -1):
        place = augmented.valid_indices[number]
        assert place == number % len(augmented) // 3 * 4 + HAVE[number % len(augmented) % 3]
        assert augmented.get_checkpoint_path(number) == PATHS[place % 4]
        assert augmented[number][2][0] == place % 4 + 1
    for dataset in (augmented, wrapped):
        with pytest.raises(IndexError):
            dataset[len(dataset)]
    assert len(pickle.dumps(augmented.valid_indices)) < 1000


def test_maps_of_a_huge_dataset_are_not_built(caplog):
    base = RepeatingDataset(PATHS, HUGE)
    tracemalloc.start()
    wrapped, augmented = DnDDatasetWithDelta(base, InMemory()), DeltaAugmentedDataset(base, InMemory())
    assert "1280250 of 5121000 items have no delta (left out): data/arc/c" in caplog.text
    assert (wrapped.idx_to_path[HUGE - 1], len(wrapped.idx_to_path)) == (PATHS[3], HUGE)
    assert wrapped.all_deltas.keys() == {PATHS[idx] for idx in HAVE}
    assert augmented.delta_map[HUGE - 1][0] == 4
    assert HUGE - 2 not in augmented.delta_map
    assert "1" not in augmented.delta_map
    assert len(augmented.delta_map) == len(augmented)
    with pytest.raises(KeyError):
        wrapped.idx_to_path[HUGE]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_delta_is_joined_once_for_each_checkpoint(cache, monkeypatch):
    loads = []
    entry = type(cache.entries()[0])
    load = entry.load
    monkeypatch.setattr(entry, "load", lambda self: (loads.append(self.path), load(self))[1])
    DnDDatasetWithDelta(RepeatingDataset(PATHS, HUGE), cache)
    assert sorted(loads) == sorted(PATHS[idx] for idx in HAVE)


def test_a_dataset_shorter_than_its_checkpoints(cache):
    wrapped = DnDDatasetWithDelta(RepeatingDataset(PATHS, 3), cache)
    assert [delta[0].item() for _, _, delta, _ in wrapped] == [1, 2, 0]
    assert dict(wrapped.idx_to_path) == dict(enumerate(PATHS[:3]))
    assert len(DnDDatasetWithDelta(RepeatingDataset(PATHS, 0), cache)) == 0


def test_parts_of_repeating_datasets(cache):
    base = RepeatingDataset(PATHS, 11)
    dataset = DeltaAugmentedDataset(
        Subset(ConcatDataset([base, RepeatingDataset(PATHS[::-1], 7)]), range(18)), cache
    )
    expected = [idx % 4 for idx in range(11)] + [3 - idx % 4 for idx in range(7)]
    assert [item[2][0].item() for item in dataset] == [place + 1 for place in expected if place in HAVE]
    both = DnDDatasetWithDelta(ConcatDataset([base, RepeatingDataset(PATHS[::-1], HUGE)]), cache)
    assert both.get_checkpoint_path(11) == PATHS[3]
    assert both[11 + HUGE - 1][2][0] == 4 - (HUGE - 1) % 4


# parts and wrappers of huge datasets

WHOLE = range(HUGE)
#: Ranges of a huge dataset, and of two of them, joined.
RANGES = [WHOLE, WHOLE[::3], WHOLE[7:-5:6], WHOLE[::-1], WHOLE[-9:4:-2], WHOLE[5:5], WHOLE[6:8]]


def expect(wrapped, paths):
    """That items of the wrapped dataset are of the paths that a function tells, at its ends and between."""
    count = len(wrapped)
    for number in {*range(min(9, count)), *range(max(0, count - 9), count), *range(count // 2, count)[:1]}:
        assert wrapped.get_checkpoint_path(number) == paths(number)


@pytest.mark.parametrize("indices", RANGES, ids=repr)
def test_a_range_of_a_huge_dataset_is_no_list(indices):
    base = RepeatingDataset(PATHS, HUGE)
    tracemalloc.start()
    wrapped = DnDDatasetWithDelta(Subset(base, indices), InMemory())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(wrapped) == len(indices)
    expect(wrapped, lambda number: PATHS[indices[number] % 4])
    joined = Subset(ConcatDataset([base, RepeatingDataset(PATHS[:3], 100)]), range(HUGE + 99, -1, -7))
    both = DnDDatasetWithDelta(joined, InMemory())
    for number in (0, 13, 14, 15, 16, len(both) - 1):
        place = joined.indices[number]
        assert both.get_checkpoint_path(number) == (
            PATHS[place % 4] if place < HUGE else PATHS[(place - HUGE) % 3]
        )


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
def test_a_wrapper_in_a_wrapper_is_not_asked_item_by_item(outer, inner):
    base = RepeatingDataset(PATHS, HUGE)
    tracemalloc.start()
    wrapped = outer(inner(base, InMemory()), InMemory())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    kept = HAVE if DeltaAugmentedDataset in (inner, outer) else range(4)
    assert len(wrapped) == HUGE // 4 * len(kept)
    expect(wrapped, lambda number: PATHS[kept[number % len(kept)]])
    assert [wrapped[number][2][0] for number in (0, 1)] == [1, 2]


def test_a_wrapper_whose_paths_its_heir_tells_is_asked(cache):
    class Reversed(DnDDatasetWithDelta):
        def get_checkpoint_path(self, idx):
            return PATHS[3 - idx % 4]

    heir = Reversed(RepeatingDataset(PATHS, 8, own=False), cache)
    assert DnDDatasetWithDelta(heir, cache).get_checkpoint_path(0) == PATHS[3]

    class Shorter(DnDDatasetWithDelta):
        def __len__(self):
            return 2

    assert len(DeltaAugmentedDataset(Shorter(RepeatingDataset(PATHS, 8), cache), cache)) == 2


def test_random_parts_of_a_huge_dataset():
    base = RepeatingDataset(PATHS, HUGE)
    parts = random_split(base, [0.9, 0.1], torch.Generator().manual_seed(1))
    for part in parts:
        wrapped, augmented = DnDDatasetWithDelta(part, InMemory()), DeltaAugmentedDataset(part, InMemory())
        expect(wrapped, lambda number, part=part: PATHS[part.indices[number] % 4])
        places = [number for number, idx in enumerate(part.indices[:50]) if idx % 4 in HAVE]
        assert augmented.valid_indices[: len(places)] == places
        assert [skip.checkpoint for skip in wrapped.missing] == [PATHS[2]]
        assert len(augmented) == sum(idx % 4 in HAVE for idx in part.indices)
        expect(
            DnDDatasetWithDelta(augmented, InMemory()),
            lambda number, part=part, kept=augmented.valid_indices: PATHS[part.indices[kept[number]] % 4],
        )


@pytest.mark.parametrize(
    "indices",
    [[2, 0, 0, 11, -1], (3,), [], np.array([5, 4]), torch.tensor([1, 12]), range(-3, 2), range(-1, -9, -3)],
    ids=repr,
)
def test_indices_of_a_part_are_those_of_its_whole(cache, indices):
    whole = ConcatDataset([RepeatingDataset(PATHS, 10), RepeatingDataset(PATHS[:2], 3)])
    plain = [PATHS[idx % 4] for idx in range(10)] + [PATHS[idx % 2] for idx in range(3)]
    wrapped = DnDDatasetWithDelta(Subset(Subset(whole, range(13)), indices), cache)
    assert [wrapped.get_checkpoint_path(idx) for idx in range(len(wrapped))] == [
        plain[idx] for idx in indices
    ]
    for wrong in ([13], [-14], range(12, 14), range(10**12)):
        with pytest.raises(IndexError):
            DnDDatasetWithDelta(Subset(whole, wrong), cache)


# contradictions


class InTurns(RepeatingDataset):
    """Repeats each checkpoint before it goes to the next."""

    def place(self, idx):
        return idx * self.real_length // self.length


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_items_that_are_repeated_otherwise(cache, wrapper):
    dataset = wrapper(InTurns(PATHS, HUGE), cache)
    assert dataset[0][2][0] == 1
    with pytest.raises(UsageError, match=rf"item 1 .*expected {PATHS[1]}, got {PATHS[0]}"):
        dataset[1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_checkpoints_that_are_shuffled_after_wrapping(cache, wrapper):
    base = RepeatingDataset(PATHS, HUGE)
    dataset = wrapper(base, cache)
    base.checkpoints.reverse()
    with pytest.raises(UsageError, match="another checkpoint"):
        dataset[0]


class Plain(Dataset):
    """Four items that tell no path; lists as they are given."""

    def __init__(self, **lists):
        self.__dict__.update(lists)

    def __len__(self):
        return 4

    def __getitem__(self, idx):
        return torch.ones(1, 2, 3) * idx, torch.ones(2)


def shuffle(base):
    base.checkpoints.reverse()


def replace(base):
    base.checkpoints = PATHS[::-1]


def shorten(base):
    base.checkpoints.pop()


def drop(base):
    del base.checkpoints


AROUND = {
    "itself": lambda base: base,
    "a part": lambda base: Subset(base, [1, 0]),
    "a range": lambda base: Subset(base, range(1, -1, -1)),
    "joined": lambda base: ConcatDataset([base, base]),
    "a wrapper": lambda base: DnDDatasetWithDelta(base, InMemory()),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
@pytest.mark.parametrize("change", [shuffle, replace, shorten, drop])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_checkpoints_that_change_after_wrapping(cache, wrapper, change, around):
    base = Plain(checkpoints=PATHS[:])
    dataset = wrapper(around(base), cache)
    assert dataset[0][2][0] in (1, 2)
    change(base)
    with pytest.raises(UsageError, match=r"item [01] of .*changed after it was wrapped"):
        dataset[0]


def test_another_list_of_the_same_checkpoints_is_no_change(cache):
    base = Plain(checkpoints=PATHS[:])
    dataset = DnDDatasetWithDelta(base, cache)
    base.checkpoints = np.array(PATHS)
    assert [dataset[idx][2][0].item() for idx in range(4)] == [1, 2, 0, 4]
    base.checkpoints = [PATHS[0], *PATHS[:0:-1]]
    assert dataset[0][2][0] == 1
    with pytest.raises(UsageError, match="changed after it was wrapped"):
        dataset[1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_lists_that_disagree_where_nothing_is_repeated(cache, wrapper):
    base = Plain(checkpoint_paths=PATHS, samples=[{"path": path} for path in reversed(PATHS)])
    with pytest.raises(UsageError, match=r"checkpoint_paths and samples .*the same checkpoints"):
        wrapper(base, cache)
    base.samples = [{"path": f"./{path}"} for path in PATHS]
    assert wrapper(base, cache)[1][2][0] == 2
    base.samples = [(path, 1) for path in reversed(PATHS)]
    assert wrapper(base, cache)[1][2][0] == 2


@pytest.mark.parametrize("length", [20, HUGE])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_lists_that_disagree(cache, wrapper, length):
    base = RepeatingDataset(PATHS, length, own=False)
    base.checkpoint_paths = sorted(PATHS)
    with pytest.raises(UsageError, match=r"checkpoint_paths and checkpoints .*the same checkpoints"):
        wrapper(base, cache)
    base.checkpoint_paths = PATHS
    assert wrapper(base, cache)[1][2][0] == 2


def told(real_length):
    base = RepeatingDataset(PATHS, 10_001, own=False)
    base.real_length = real_length
    return base


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("real_length", [None, 3, 5, 0, -4, True, 4.0, "4"])
def test_a_long_dataset_that_does_not_tell_is_refused(cache, wrapper, real_length):
    """A list of any other length than it repeats may hold anything."""
    base = told(real_length)
    with pytest.raises(
        UsageError, match=r"too many items .*checkpoints of 4.*10001 items\. Give it an attribute checkpoints"
    ):
        wrapper(base, cache)
    assert base.read == 0


def test_what_the_refusal_asks_for_is_enough(cache):
    for real_length, checkpoints in ((4, PATHS), (None, [PATHS[0]] * 10_001)):
        base = told(real_length)
        base.checkpoints = checkpoints
        assert DnDDatasetWithDelta(base, cache).get_checkpoint_path(10_000) == PATHS[0]
    base = told(None)
    base.get_checkpoint_path = lambda idx: PATHS[idx % 4]
    assert DnDDatasetWithDelta(base, cache).get_checkpoint_path(10_000) == PATHS[0]


def test_a_short_dataset_is_read_where_its_list_contradicts_real_length(cache):
    """As long as the dataset, but said to be repeated: it may be meant either way; the items know."""
    base = RepeatingDataset(PATHS, 4)
    base.real_length = 2
    assert [delta[0].item() for _, _, delta, _ in DnDDatasetWithDelta(base, cache)] == [1, 2, 1, 2]


def test_wrap_dnd_dataset_takes_the_class(cache):
    wrapped = wrap_dnd_dataset(RepeatingDataset, cache, checkpoints=PATHS, length=HUGE, texts=1)
    assert wrapped[HUGE - 1][3] == PATHS[3]


# the arithmetic


@pytest.mark.parametrize("counts", [[(4, 11)], [(1, 1), (3, 9), (4, 2)], [(2, 7), (5, 0), (2, 3)], [(3, 3)]])
@pytest.mark.parametrize("chosen", [set(), {0}, {1, 2}, {0, 1, 2, 3, 4}])
def test_chosen_indices_are_those_of_a_list(counts, chosen):
    paths = ItemPaths([Cycle([str(at) for at in range(min(size, count))], count) for size, count in counts])
    plain = [str(idx % size) for size, count in counts for idx in range(count)]
    assert [paths[idx] for idx in range(len(paths))] == plain
    indices = ChosenIndices(paths, lambda path: int(path) in chosen)
    expected = [idx for idx, path in enumerate(plain) if int(path) in chosen]
    assert indices == expected
    assert list(indices) == expected
    assert indices[1:-1] == expected[1:-1]
    assert [idx in indices for idx in range(-1, len(plain) + 1)] == [
        idx in expected for idx in range(-1, len(plain) + 1)
    ]
    assert indices != [*expected, 0]


@pytest.mark.parametrize("counts", [[], [(3, 7)]])
@pytest.mark.parametrize("indices", [[], range(0), np.zeros(0, np.intp)])
def test_no_items_are_a_part_too(counts, indices):
    paths = ItemPaths([Cycle([str(at) for at in range(size)], count) for size, count in counts])
    part = paths.part(indices)
    assert (len(part), part.distinct()) == (0, [])
