"""Damage: never a wrong tensor; an error with shard, key and member, or an invalid row by policy."""

from __future__ import annotations

import gc
import json
import os
import shutil

import numpy as np
import pytest
import torch

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards.errors import DamageError, StorageError, UsageError
from llgbm_shards.held import Identity
from llgbm_shards.members import SUFFIX
from llgbm_shards.shardset import ShardSet
from support.synthetic import write_set

SAMPLES = 10


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", SAMPLES, shard_samples=5)


def _extents(made, number=3):
    return {extent.field: extent for extent in ShardSet(made.path).extents(number)}


def _flip(made, shard, offset, bit=0):
    path = made.path / shard
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def _loader(made, **options):
    return StreamingLoader(made.path, **{"batch_size": 5, "shuffle": False, **options})


@pytest.mark.parametrize("field", ["pieces", "scales", "texts", "delta"])
@pytest.mark.parametrize("where", ["header", "first", "last"])
def test_a_flipped_bit_is_named(made, field, where):
    extent = _extents(made)[field]
    offset = {"header": -512 + 20, "first": 0, "last": extent.size - 1}[where] + extent.offset
    _flip(made, extent.shard, offset, 3)
    with pytest.raises(DamageError) as caught:
        list(_loader(made))
    assert (caught.value.shard, caught.value.key) == (extent.shard, extent.key)
    assert caught.value.member == SUFFIX[field]


def test_forms_of_different_numbers_of_texts_are_named(tmp_path, monkeypatch):
    """A set that was written so: its digests hold, and mix may draw a text that one form has and the other lacks."""
    ids, counts = np.arange(3, 9, dtype=np.int32), {"prompt": 3, "answer": 3, "prompt_answer": 2}
    texts = {form: (ids, np.linspace(0, 6, count + 1, dtype=np.int64)) for form, count in counts.items()}
    monkeypatch.setattr("support.synthetic._make_texts", lambda count, rng: texts)
    made = write_set(tmp_path / "set", 5)
    for form in ("prompt", "prompt_answer"):
        assert len(list(_loader(made, form=form, num_texts=3))) == 1
    with pytest.raises(
        DamageError, match=r"different numbers of texts.*'prompt': 3, 'prompt_answer': 2"
    ) as caught:
        list(_loader(made, form="mix", mix=0.5, num_texts=8))
    assert caught.value.member == SUFFIX["texts"]


def test_every_flipped_byte_of_a_sample_is_found_or_outside_of_what_was_read(tmp_path):
    made = write_set(tmp_path / "set", 2)
    extents = list(_extents(made, 0).values())
    path = made.path / extents[0].shard
    pristine = path.read_bytes()
    # source and json are no fields of a batch; what stands between a member and the next header is padding.
    read = {
        byte for extent in extents[:-2] for byte in range(extent.offset - 512, extent.offset + extent.size)
    }
    end = extents[-1].offset + extents[-1].size
    for offset in range(0, end, 7):
        _flip(made, extents[0].shard, offset, offset % 8)
        loader = _loader(made, batch_size=1, readers=1, prefetch_batches=1)
        if offset in read:
            with pytest.raises(DamageError, match=extents[0].key):
                next(iter(loader))
        else:
            next(iter(loader))
        path.write_bytes(pristine)


def test_skip_makes_an_invalid_row_and_the_others_are_whole(made):
    good = next(iter(_loader(made)))
    extent = _extents(made)["pieces"]
    _flip(made, extent.shard, extent.offset + extent.size - 1)
    loader = _loader(made, on_bad_sample="skip")
    bad, _ = list(loader)
    assert bad["valid"].tolist() == [True, True, True, False, True]
    assert bad["keys"] == good["keys"]
    assert not bad["has_delta"][3]
    for name in ("tokens", "scales", "delta", "condition_ids", "attention_mask"):
        assert not bad[name][3].count_nonzero()
        assert torch.equal(bad[name][bad["valid"]].nan_to_num(), good[name][bad["valid"]].nan_to_num())
    stats = loader.stats()
    assert (stats.invalid_rows, stats.samples, stats.padding_rows) == (1, SAMPLES - 1, 0)
    assert extent.key in stats.damage[0]
    assert extent.shard in stats.damage[0]


def test_skip_has_a_limit(made):
    for shard in made.path.glob("*.tar"):
        shard.write_bytes(b"")
    list(_loader(made, on_bad_sample="skip", max_bad_samples=SAMPLES))
    with pytest.raises(DamageError, match="too many damaged samples"):
        list(_loader(made, on_bad_sample="skip", max_bad_samples=SAMPLES - 1))


def test_a_damaged_sample_counts_once_however_many_epochs_it_comes_in(made):
    extent = _extents(made)["pieces"]
    _flip(made, extent.shard, extent.offset)
    loader = _loader(made, on_bad_sample="skip", max_bad_samples=1)
    for _ in range(4):
        list(loader)
    stats = loader.stats()
    assert (stats.epochs, stats.invalid_rows, len(stats.damage)) == (4, 4, 1)
    assert stats.samples == 4 * (SAMPLES - 1)


def test_a_batch_beyond_the_limit_is_not_delivered_and_the_error_names_its_cause(made):
    for number in (3, 7, 8):
        extent = _extents(made, number)["pieces"]
        _flip(made, extent.shard, extent.offset)
    loader = _loader(made, on_bad_sample="skip", max_bad_samples=1)
    with pytest.raises(DamageError, match="not the member that the index names; too many") as caught:
        list(loader)
    assert (caught.value.key, caught.value.member) == (extent.key, SUFFIX["pieces"])
    assert "max_bad_samples" in str(caught.value)
    assert "llgbm-pack repair" in str(caught.value)
    stats = loader.stats()
    assert (stats.batches, stats.samples, stats.invalid_rows, len(stats.damage)) == (1, 4, 1, 3)


def test_a_truncated_shard(made):
    """Of the samples that lack bytes the first is named, whichever a reader comes to first."""
    extent = _extents(made)["delta"]
    os.truncate(made.path / extent.shard, extent.offset + 10)
    for _ in range(20):
        with pytest.raises(DamageError, match="truncated") as caught:
            list(_loader(made))
        assert (caught.value.key, caught.value.member) == (extent.key, SUFFIX["delta"])


def test_a_missing_shard(made):
    (made.path / made.samples[-1].shard).unlink()
    loader = _loader(made)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(DamageError, match="missing") as caught:
        next(iterator)
    assert caught.value.shard == made.samples[-1].shard
    assert caught.value.key


@pytest.mark.parametrize("verify", ["full", "off"])
def test_swapped_shards_are_found_even_unverified(made, verify):
    one, other = (made.path / f"train-00000{number}.tar" for number in (0, 1))
    kept = one.read_bytes()
    shutil.copyfile(other, one)
    other.write_bytes(kept)
    with pytest.raises(DamageError):
        list(_loader(made, verify=verify))


@pytest.mark.parametrize("verify", ["full", "off"])
def test_a_shard_of_another_set_is_found(made, tmp_path, verify):
    other = write_set(tmp_path / "other", SAMPLES, shard_samples=5, prefix="another-zoo")
    shutil.copyfile(other.path / "train-000000.tar", made.path / "train-000000.tar")
    with pytest.raises(DamageError, match=r"not the member that the index names|the shard is too long"):
        list(_loader(made, verify=verify))


def test_verification_can_be_off_or_of_the_first_epoch(made, monkeypatch):
    # Bits that rot leave the file's times as they are; a test cannot.
    rotten = classmethod(lambda cls, status: cls(status.st_ino, status.st_size, 0, 0))
    monkeypatch.setattr(Identity, "of", rotten)
    extent = _extents(made)["pieces"]
    offset = extent.offset + extent.size - 1
    loader = _loader(made, verify="first-epoch")
    assert len(list(loader)) == 2
    _flip(made, extent.shard, offset)
    assert len(list(loader)) == 2
    with pytest.raises(DamageError):
        list(_loader(made, verify="first-epoch"))
    assert len(list(_loader(made, verify="off"))) == 2


@pytest.mark.parametrize(("ranks", "batches"), [(1, 2), (2, 5)], ids=["left early", "half of it"])
def test_the_first_epoch_vouches_for_no_sample_that_was_not_read(made, ranks, batches):
    options = {"batch_size": 1, "shuffle": True, "rank": 0, "world_size": ranks}
    loader = _loader(made, verify="first-epoch", prefetch_batches=1, **options)
    read = {batch["keys"][0] for _, batch in zip(range(batches), loader, strict=False)}
    for number, sample in enumerate(made.samples):
        if sample.key not in read:
            extent = _extents(made, number)["pieces"]
            _flip(made, extent.shard, extent.offset + extent.size - 1)
    loader.set_epoch(1)
    with pytest.raises(DamageError):
        list(loader)


def test_a_fifo_in_a_shards_place_does_not_hang_or_stay_open(made):
    (made.path / "train-000000.tar").unlink()
    os.mkfifo(made.path / "train-000000.tar")
    gc.collect()  # the directories of earlier loaders
    loader, before = _loader(made), len(os.listdir("/proc/self/fd"))
    with pytest.raises(DamageError, match="not a regular file"):
        list(loader)
    assert len(os.listdir("/proc/self/fd")) == before


def test_unreadable_is_not_damage_and_is_never_skipped(made):
    # A symbolic link to itself cannot be opened by anybody, root included.
    path = made.path / "train-000000.tar"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StorageError):
        list(_loader(made, on_bad_sample="skip"))


def test_an_unfinished_or_edited_set_is_refused(made):
    (made.path / "shardset.json").rename(made.path / "away")
    with pytest.raises(DamageError, match="commit record is missing"):
        _loader(made)
    (made.path / "away").rename(made.path / "shardset.json")
    index = made.path / "index.parquet"
    index.write_bytes(index.read_bytes() + b"\0")
    with pytest.raises(DamageError, match="index"):
        _loader(made)


def test_a_pinned_digest(made, tmp_path):
    other = write_set(tmp_path / "other", 4, prefix="b")
    own = json.loads((made.path / "shardset.json").read_bytes())["digest"]
    assert ShardSet(made.path).digest == own
    _loader(made, expect_digest=own)
    with pytest.raises(UsageError, match="another set than expected"):
        _loader(made, expect_digest="00" * 32)
    with pytest.raises(UsageError, match="expect_digest"):
        StreamingLoader([made.path, other.path], expect_digest="00" * 32)


def test_the_dataset_names_damage_too(made):
    extent = _extents(made)["texts"]
    _flip(made, extent.shard, extent.offset + extent.size - 1)
    dataset = ShardDataset(made.path)
    assert dataset[2]["keys"] == made.samples[2].key
    with pytest.raises(DamageError) as caught:
        dataset[3]
    assert (caught.value.key, caught.value.member) == (extent.key, SUFFIX["texts"])
