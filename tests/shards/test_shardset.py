"""Reading a set: by ShardSet, GNU tar, stock webdataset and a hub's reader, all with the same bytes."""

from __future__ import annotations

import json
import subprocess
import tarfile
import warnings

import numpy as np
import pytest

from llgbm_shards import DamageError, HeaderError, ShardSet, UsageError
from llgbm_shards.members import SUFFIX
from support.edited_set import rewrite

SECOND = "train-000001.tar"


def test_samples_come_back_by_number_and_by_key(made):
    opened = ShardSet(made.path)
    assert opened.keys == [sample.key for sample in made.samples]
    assert len(opened) == 12
    for number, written in enumerate(made.samples):
        for sample in (opened.read_sample(number), opened.read_sample(written.key)):
            np.testing.assert_array_equal(sample.pieces, written.pieces)
            np.testing.assert_array_equal(sample.scales, written.scales)
            np.testing.assert_array_equal(sample.delta, written.delta)
            for form, (ids, offsets) in written.texts.items():
                np.testing.assert_array_equal(sample.texts[form][0], ids)
                np.testing.assert_array_equal(sample.texts[form][1], offsets)
            assert sample.json["checkpoint"] == written.key


@pytest.mark.parametrize("sample", [-1, 12, "nothing"])
def test_samples_that_are_not_there_are_an_error(made, sample):
    with pytest.raises(UsageError, match="no such sample"):
        ShardSet(made.path).read_sample(sample)


def test_extents_of_a_shard_are_those_of_its_samples(made):
    opened = ShardSet(made.path)
    found = list(opened.shard_extents(SECOND))
    assert found == [opened.extents(number) for number in range(5, 10)]


def test_a_damaged_sample_is_refused_with_its_place(made):
    opened = ShardSet(made.path)
    extent = opened.extents(6)[1]
    data = bytearray((made.path / SECOND).read_bytes())
    data[extent.offset + 130] ^= 1
    (made.path / SECOND).write_bytes(data)
    with pytest.raises(DamageError) as caught:
        opened.read_sample(6)
    assert (caught.value.shard, caught.value.key, caught.value.member) == (SECOND, extent.key, "scales.npy")
    opened.read_sample(5)


def test_a_sample_that_was_damaged_before_the_set_was_opened_is_refused_too(made):
    extent = ShardSet(made.path).extents(6)[1]
    data = bytearray((made.path / SECOND).read_bytes())
    data[extent.offset + 130] ^= 1
    (made.path / SECOND).write_bytes(data)
    expected = (
        f"damaged: expected {extent.size} bytes, digest {extent.blake3}, got {extent.size} bytes, digest "
    )
    with pytest.raises(DamageError, match=f"{SECOND} sample {extent.key} scales.npy: {expected}.* repair"):
        ShardSet(made.path).read_sample(6)


def test_damaged_index_is_refused_when_it_is_opened(made):
    data = bytearray((made.path / "index.parquet").read_bytes())
    data[40] ^= 1
    (made.path / "index.parquet").write_bytes(data)
    with pytest.raises(DamageError, match=r"not the index that was committed.*repair"):
        _ = ShardSet(made.path).keys


def test_member_that_is_right_but_of_another_layout_is_refused(made):
    rewrite(made.path, lambda key, data: {**data, "scales": data["scales"][:-8]})
    with pytest.raises(
        DamageError, match=r"not the expected npy array: expected <f4 of shape .*, got .* bytes"
    ):
        ShardSet(made.path).read_sample(0)
    assert issubclass(HeaderError, Exception)


def _members(opened, number):
    return {SUFFIX[extent.field]: opened.read_member(extent) for extent in opened.extents(number)}


def test_gnu_tar_and_tarfile_read_the_same_bytes(made, tmp_path):
    opened = ShardSet(made.path)
    shard = made.path / "train-000000.tar"
    listed = subprocess.run(["tar", "tf", shard], capture_output=True, check=True).stdout.decode().split()
    assert listed == [f"{key}.{suffix}" for key in opened.keys[:5] for suffix in SUFFIX.values()]
    subprocess.run(["tar", "xf", shard, "-C", tmp_path], check=True)
    with tarfile.open(shard, "r:") as archive:
        for number in range(5):
            for suffix, data in _members(opened, number).items():
                name = f"{opened.keys[number]}.{suffix}"
                assert (tmp_path / name).read_bytes() == data
                assert archive.extractfile(name).read() == data


def test_stock_webdataset_gives_the_same_samples(made):
    import webdataset

    opened = ShardSet(made.path)
    urls = [str(made.path / entry.name) for entry in opened.record.shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == opened.keys
    for number, sample in enumerate(samples):
        got = {name: data for name, data in sample.items() if not name.startswith("__")}
        assert got == _members(opened, number)


def _trap(key, data):
    """Values that hub readers get wrong when keys or types differ between samples."""
    number = int(data["json"].partition(b"lora_")[2].partition(b"-")[0])
    info = json.loads(data["json"])
    info["alpha"] = 16.5 if number > 6 else 16.0
    info["texts"] = [{"prompt": f"p{number}", "answer": "" if number % 2 else "a"}] * (1 + number % 3)
    info["modules"][0] = {"name": info["modules"][0]["name"], "rank": 0 if number == 9 else 2, "scaling": 0.5}
    norm = 0.1 + number if info["has_delta"] else 0.0
    info["delta"] |= {"file": f"{number}.npy" if info["has_delta"] else "", "norm": norm}
    return {**data, "json": json.dumps(info).encode()}


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_reader_reads_json_and_delta_rightly(made, tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rewrite(made.path, _trap)
    rows = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(made.path / "train-*.tar")},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    opened = ShardSet(made.path)
    rows = list(rows)
    assert [row["__key__"] for row in rows] == opened.keys
    fractions = set()
    for number, row in enumerate(rows):
        sample = opened.read_sample(number)
        assert row["json"] == sample.json
        fractions.add(row["json"]["alpha"])
        np.testing.assert_array_equal(np.asarray(row["delta.npy"], np.float32), sample.delta)
        np.testing.assert_array_equal(np.asarray(row["scales.npy"], np.float32), sample.scales)
    assert fractions == {16.0, 16.5}
