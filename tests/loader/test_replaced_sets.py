"""A set that is replaced under a running reader: the reader goes on with the set it opened, or says so."""

from __future__ import annotations

import os
import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards import ShardSet, shardset
from llgbm_shards.errors import DamageError
from llgbm_shards.held import HeldShard
from support.other_sets import WAYS, exchange, put_back, rename_over, two_sets, write_over

pytestmark = pytest.mark.slow

VERIFY = ["full", "first-epoch", "off"]


@pytest.fixture
def made(tmp_path):
    return two_sets(tmp_path)


def _loader(path, **options):
    return StreamingLoader(path, **{"batch_size": 2, "shuffle": False, "readers": 1, **options})


def _values(batches):
    return [(batch["keys"], batch["tokens"].nan_to_num()) for batch in batches]


def _same(some, others):
    assert [keys for keys, _ in some] == [keys for keys, _ in others]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(some, others, strict=True))


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("way", WAYS)
def test_between_epochs(made, way, verify):
    loader = _loader(made[0].path, verify=verify)
    assert len(list(loader)) == 6
    way(*made)
    with pytest.raises(
        DamageError, match=r"train-00000\d\.tar sample .*the set was replaced.*Open the set again"
    ):
        list(loader)


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("way", WAYS)
def test_within_an_epoch_what_was_handed_out_is_of_the_opened_set(made, way, verify):
    want = _values(_loader(made[0].path))
    batches = iter(_loader(made[0].path, verify=verify, prefetch_batches=1))
    got = _values([next(batches)])
    way(*made)
    # A reader may come between delete and copy, or amid the writing over of a file that it has open.
    amid = r"|truncated|not those that were written|not the member" if way is write_over else ""
    with pytest.raises(DamageError, match=r"the set was replaced|the shard is missing" + amid):
        got.extend(value for batch in batches for value in _values([batch]))
    assert 1 <= len(got) < len(want)
    _same(got, want[: len(got)])


@pytest.mark.parametrize("verify", ["full", "off"])
def test_shards_that_are_kept_open_are_read_on_and_evicted_ones_refused(tmp_path, verify):
    made = two_sets(tmp_path, 20, shard_samples=1)
    dataset = ShardDataset(made[0].path, verify=verify)
    want = [dataset[number]["tokens"] for number in range(20)]  # the last 16 shards are open now
    exchange(*made)
    for number in range(4, 20):
        assert torch.equal(dataset[number]["tokens"].nan_to_num(), want[number].nan_to_num())
    for number in range(4):
        with pytest.raises(DamageError, match="the set was replaced"):
            dataset[number]


def test_every_sample_of_another_set_is_invalid_when_damage_is_skipped_and_each_shard_proven_once(
    made, monkeypatch
):
    loader, proven, plain = (
        _loader(made[0].path, on_bad_sample="skip", verify="off"),
        [],
        HeldShard._difference,
    )
    monkeypatch.setattr(
        HeldShard, "_difference", lambda shard, *rest: proven.append(shard.name) or plain(shard, *rest)
    )
    rename_over(*made)
    for _ in range(2):
        assert not any(batch["valid"].any() for batch in loader)
    assert sorted(proven) == [entry.name for entry in made[0].record.shards]
    assert len(loader.stats().damage) == 12
    assert all("the set was replaced" in damage for damage in loader.stats().damage)


@pytest.mark.parametrize("verify", VERIFY)
def test_shards_that_repair_put_back_are_as_good(made, verify, monkeypatch):
    proven, plain = [], HeldShard._difference
    monkeypatch.setattr(
        HeldShard, "_difference", lambda shard, *rest: proven.append(shard.name) or plain(shard, *rest)
    )
    want = _values(_loader(made[0].path))
    loader = _loader(made[0].path, verify=verify)
    for _ in range(2):
        got = []
        for batch in loader:
            got += _values([batch])
            if len(got) == 2:
                put_back(made[0])
        _same(got, want)
    _same(_values(loader), want)
    before = len(proven)
    assert before, "the new files were read whole"
    _same(_values(loader), want)
    assert len(proven) == before, "... and once"


@pytest.mark.parametrize("verify", VERIFY)
def test_a_set_that_is_moved_is_read_on(made, verify, tmp_path):
    want = _values(_loader(made[0].path))
    loader = _loader(made[0].path, verify=verify)
    dataset = ShardDataset(made[0].path)
    (tmp_path / "elsewhere").mkdir()
    made[0].path.rename(tmp_path / "elsewhere/set")
    _same(_values(loader), want)
    made[1].path.rename(made[0].path)  # another one in its place
    _same(_values(loader), want)
    there = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(there[0]["tokens"].nan_to_num(), want[0][1][0])


@pytest.mark.parametrize(("method", "workers"), [(None, 0), ("fork", 2), ("spawn", 2)])
@pytest.mark.parametrize("way", [exchange, rename_over])
def test_workers_hold_the_same_set(made, way, method, workers):
    dataset = ShardDataset(made[0].path, verify="off")
    feed = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=method)
    want = _values(feed)
    way(*made)
    if not workers:  # this process has all shards open
        _same(_values(feed), want)
        return
    # One worker: torch would end another while it still starts, which that one tells as an error of its own.
    with pytest.raises(DamageError, match="the set was replaced"):
        list(DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context=method))


def test_a_pickled_dataset_proves_what_it_finds(made):
    dataset = pickle.dumps(ShardDataset(made[0].path, verify="off"))
    assert pickle.loads(dataset)[3]["keys"] == made[0].samples[3].key
    shutil.copytree(made[0].path, made[0].path.parent / "copy")
    shutil.rmtree(made[0].path)
    made[1].path.rename(made[0].path)
    with pytest.raises(DamageError, match="the set was replaced"):
        pickle.loads(dataset)[3]
    made[0].path.rename(made[1].path)
    (made[0].path.parent / "copy").rename(made[0].path)
    assert pickle.loads(dataset)[3]["keys"] == made[0].samples[3].key


def test_a_missing_shard_is_no_replaced_set(made):
    loader = _loader(made[0].path)
    os.unlink(made[0].path / made[0].record.shards[0].name)
    with pytest.raises(DamageError, match=r"the shard is missing.*llgbm-pack repair"):
        list(loader)


@pytest.mark.parametrize("way", [rename_over, write_over])
@pytest.mark.parametrize("moment", ["identities", "read_record"])
def test_while_it_is_opened(made, way, moment, monkeypatch):
    plain = getattr(shardset, moment)

    def stepped(directory):
        result = plain(directory)
        way(*made)
        return result

    monkeypatch.setattr(shardset, moment, stepped)
    loader = _loader(made[0].path, verify="off")
    with pytest.raises(DamageError, match="the set was replaced"):
        list(loader)


def test_another_record_while_it_is_opened(made, monkeypatch):
    plain = shardset.identities

    def stepped(directory):
        there = plain(directory)
        (made[1].path / "shardset.json").rename(made[0].path / "shardset.json")
        return there

    monkeypatch.setattr(shardset, "identities", stepped)
    with pytest.raises(DamageError, match=r"shardset\.json: the set was replaced"):
        ShardSet(made[0].path)


def test_written_over_under_an_open_descriptor(made):
    dataset = ShardDataset(made[0].path, verify="off")
    dataset[0]
    write_over(*made)
    with pytest.raises(DamageError, match="the set was replaced"):
        dataset[1]


def test_written_over_amid_the_second_epoch_of_one_shard(tmp_path):
    made = two_sets(tmp_path, 12, shard_samples=12)
    loader = _loader(made[0].path, batch_size=1, prefetch_batches=1, verify="first-epoch")
    want = _values(loader)
    got, batches = [], iter(loader)
    got += _values([next(batches)])
    write_over(*made)
    with pytest.raises(DamageError, match="the set was replaced"):
        got.extend(value for batch in batches for value in _values([batch]))
    _same(got, want[: len(got)])


def test_a_changed_mode_costs_one_more_read_and_no_sample(made, caplog):
    dataset = ShardDataset(made[0].path, verify="off")
    want = dataset[0]["tokens"].nan_to_num()
    (made[0].path / made[0].record.shards[0].name).chmod(0o600)
    for _ in range(2):
        assert torch.equal(dataset[0]["tokens"].nan_to_num(), want)
    assert [record.getMessage().count("it is read whole") for record in caplog.records] == [1]


def test_a_size_that_is_not_the_records_is_not_trusted(made):
    with (made[0].path / made[0].record.shards[0].name).open("ab") as shard:
        shard.write(bytes(512))
    with pytest.raises(DamageError, match="the shard is too long"):
        ShardDataset(made[0].path, verify="off")[0]
