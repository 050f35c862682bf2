"""ShardDataset: by number or key, in forked and spawned workers, equal to the streaming loader."""

from __future__ import annotations

import gc
import os
import pickle
import threading

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards.errors import UsageError
from llgbm_shards.held import HeldShard
from support.synthetic import write_set

OPTIONS = {"num_texts": 2, "form": "mix", "seed": 3}


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", 20, shard_samples=3)


def _equal(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(one[name].nan_to_num(), value.nan_to_num())
            assert one[name].dtype == value.dtype
        else:
            assert one[name] == value


def test_rows_collate_to_the_loaders_batch(made):
    dataset = ShardDataset(made.path, **OPTIONS)
    loader = StreamingLoader(made.path, batch_size=4, **OPTIONS)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for batch in loader:
            _equal(torch.utils.data.default_collate([dataset[key] for key in batch["keys"]]), batch)


def test_by_number_by_key_and_from_the_end(made):
    dataset = ShardDataset(made.path)
    assert len(dataset) == 20
    assert dataset.keys == [sample.key for sample in made.samples]
    _equal(dataset[7], dataset[made.samples[7].key])
    _equal(dataset[-1], dataset[torch.tensor(19)])
    for bad in (20, -21):
        with pytest.raises(IndexError, match=f"no sample {bad}: there are 20"):
            dataset[bad]
    with pytest.raises(UsageError, match="no such sample"):
        dataset["no-such-key"]
    with pytest.raises(UsageError, match="full or off"):
        ShardDataset(made.path, verify="first-epoch")


@pytest.mark.parametrize("epoch", ["x", -1, 1.0, True, None])
def test_an_epoch_is_a_whole_number(made, epoch):
    dataset = ShardDataset(made.path)
    dataset.set_epoch(torch.arange(3).numpy()[2])
    with pytest.raises(UsageError, match=r"epoch: .*a whole number, 0 or more"):
        dataset.set_epoch(epoch)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers(made, method):
    dataset = ShardDataset(made.path, **OPTIONS)
    wanted = [dataset[number] for number in range(20)]  # opens descriptors in the parent first
    workers = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=method)
    for number, batch in enumerate(workers):
        _equal(batch, torch.utils.data.default_collate(wanted[5 * number : 5 * number + 5]))
    _equal(dataset[3], wanted[3])


def test_rows_of_padding_longest_have_lengths_of_their_own(made):
    rows = list(ShardDataset(made.path, padding="longest", num_texts=2))
    assert all(row["condition_ids"].shape == row["attention_mask"].shape for row in rows)
    assert all(row["attention_mask"].sum(-1).max() == row["condition_ids"].shape[-1] for row in rows)
    assert len({row["condition_ids"].shape for row in rows}) > 1
    with pytest.raises(RuntimeError):
        torch.utils.data.default_collate(rows)


def test_a_forked_process_opens_shards_for_itself(made, monkeypatch):
    dataset, opened = ShardDataset(made.path), []
    want, plain = dataset[0], HeldShard.open
    monkeypatch.setattr(HeldShard, "open", lambda shard: opened.append(shard) or plain(shard))
    assert torch.equal(dataset[0]["delta"], want["delta"])
    assert not opened, "the parent has it open"
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put((dataset[0]["keys"], len(opened))))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert results.get() == (want["keys"], 1)


def test_distributed_sampler(made):
    dataset, keys = ShardDataset(made.path, fields=["delta"]), []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank)
        keys += [key for batch in DataLoader(dataset, batch_size=5, sampler=sampler) for key in batch["keys"]]
    assert sorted(keys) == sorted(dataset.keys)


def test_pickles_without_descriptors(made):
    dataset = ShardDataset(made.path)
    want = dataset[0]
    _equal(pickle.loads(pickle.dumps(dataset))[0], want)


def test_threads_read_side_by_side_and_descriptors_are_bounded_and_closed(made):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    dataset = ShardDataset(made.path)
    want, wrong = [dataset[number] for number in range(20)], []

    def read(dataset):
        for number in range(20):
            try:
                _equal(dataset[number], want[number])
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(dataset,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    del dataset, thread, threads
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_key_in_two_sets_is_ambiguous(tmp_path):
    one = write_set(tmp_path / "one", 4)
    two = write_set(tmp_path / "two", 6, seed=1)
    dataset = ShardDataset([one.path, two.path])
    assert len(dataset) == 10
    with pytest.raises(UsageError, match="several sets"):
        dataset[one.samples[0].key]
    assert dataset[two.samples[5].key]["keys"] == two.samples[5].key
