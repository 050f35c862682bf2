"""Repair puts an overlay's files back from its base and its sources, to the bit, or says what it needs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from llgbm_pack import DeltaCache
from llgbm_pack.plan import overlay as plan_module
from llgbm_shards import ShardSet, check
from support.commands import here
from support.damage import flipped
from support.overlays import build_set, lay, new, write_sources
from support.tiny_zoo import tree

FIRST = "train-000000.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = write_sources(tmp_path_factory.mktemp("overlay"))
    build_set(root, "base", "old", "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_SHARD_BYTES", 10000)
        assert lay(root, **new(root)).shards > 3
    shutil.rmtree(root / "zoo")
    return root


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made, tmp_path / "own")


def mend(root, *options):
    return here("repair", root / "over", *options, "-q", "--format", "json")


def all_of(root):
    return "--base", root / "base", "--deltas", root / "new"


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [spoil, lambda path: path.unlink()], ids=["spoilt", "gone"])
@pytest.mark.parametrize("name", [FIRST, "val-000000.tar", "index.parquet", "skipped.json", "shardset.json"])
def test_each_file_comes_back(made, own, name, damage):
    damage(own / "over" / name)
    assert not check(own / "over").sound
    pinned = ("--expect-digest", ShardSet(made / "over").digest) if name == "shardset.json" else ()
    done = mend(own, *all_of(own), *pinned)
    assert (done.code, done.json["restored"]) == (0, [name]), done.out + done.err
    assert tree(own / "over") == tree(made / "over")


def test_a_tokenizer_file_and_a_shard_at_once(made, own):
    name = "tokenizer/tokenizer.json"
    for damaged in (name, FIRST):
        spoil(own / "over" / damaged)
    done = mend(own, *all_of(own), "--text-tokenizer", own / "qwen2")
    assert (done.code, sorted(done.json["restored"])) == (0, [name, FIRST])
    assert tree(own / "over") == tree(made / "over")


@pytest.mark.slow
def test_shards_and_index_at_once(made, own):
    for name in (FIRST, "index.parquet"):
        spoil(own / "over" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_SHARD_BYTES", 10000)
        done = mend(own, *all_of(own))
    assert (done.code, sorted(done.json["restored"])) == (0, ["index.parquet", FIRST])
    assert tree(own / "over") == tree(made / "over")


def test_what_it_needs_is_said(own):
    spoil(own / "over" / FIRST)
    before = tree(own / "over")
    for options, said in (
        ((), "are lost and the set has no parity"),
        ((), "Give what it was packed from: --base DIR --deltas DIR."),
        (
            ("--deltas", own / "new", "--zoo", own),
            "Give what it was packed from: --base DIR --deltas DIR.",
        ),
        (("--base", own / "base"), "packed with --deltas: expected --deltas DIR, got none; it was new"),
        (("--base", own / "over", "--deltas", own / "new"), "not the set that it is an overlay of"),
    ):
        done = mend(own, *options)
        assert done.code == 1
        (refused,) = done.json["refused"]
        assert said in refused["reason"]
        assert tree(own / "over") == before
    assert "--base BASE" in here("check", own / "over").out


def test_a_base_that_is_none_or_damaged_is_named_and_the_rest_is_put_back(made, own):
    for name in (FIRST, "skipped.json"):
        spoil(own / "over" / name)
    (own / "empty").mkdir()
    done = here(
        "repair", own / "over", "--base", own / "empty", "--deltas", own / "new", "-q", "--format", "json"
    )
    assert (done.code, done.json["restored"]) == (1, ["skipped.json"])
    assert done.json["refused"][0]["reason"].startswith(f"{own / 'empty'}: not a shard set")
    base = ShardSet(own / "base")
    extent = base.extents(ShardSet(own / "over").keys[0])[-1]
    for damaged, said in (
        (extent.shard, f"{own / 'base' / extent.shard} sample {extent.key} json: damaged"),
        ("index.parquet", f"{own / 'base' / 'index.parquet'}: not the index that was committed"),
    ):
        with flipped(own / "base" / damaged, 8 * (extent.offset + 5)):
            done = mend(own, *all_of(own))
        assert done.code == 1
        assert done.json["refused"][0]["reason"].startswith(said)
    assert mend(own, *all_of(own)).code == 0
    assert tree(own / "over") == tree(made / "over")


def test_the_list_of_skipped_needs_no_base(made, own):
    spoil(own / "over" / "skipped.json")
    done = mend(own)
    assert (done.code, done.json["restored"]) == (0, ["skipped.json"])
    assert tree(own / "over") == tree(made / "over")


def test_a_shard_of_datasets_without_newer_texts(own, monkeypatch):
    monkeypatch.setattr(plan_module, "_SHARD_BYTES", 1)
    (own / "texts").mkdir()
    (own / "texts" / "alpha.json").write_text('[{"prompt": "newer"}]')
    lay(own, texts=own / "texts", overwrite=True)
    before = tree(own / "over")
    index = ShardSet(own / "over").index(["shard", "task"]).to_pylist()
    spoil(own / "over" / next(row["shard"] for row in index if row["task"] == "beta"))
    assert mend(own, "--base", own / "base", "--texts", own / "texts").code == 0
    assert tree(own / "over") == before


def test_a_changed_delta_is_named(own):
    opened = ShardSet(own / "over")
    path = opened.index(["checkpoint"]).column("checkpoint")[0].as_py()
    cache = DeltaCache(own / "new")
    cache.save_delta(f"zoo/{path}", np.ones(opened.record.delta_width, np.float32))
    spoil(own / "over" / FIRST)
    done = mend(own, *all_of(own))
    assert done.code == 1
    assert f"{path}: other delta" in done.json["refused"][0]["reason"]


def test_the_set_says_which_samples_have_a_delta(own):
    """A delta that came to the cache later is none of the overlay's."""
    cache, opened = DeltaCache(own / "new"), ShardSet(own / "over")
    path = opened.index(["checkpoint"]).column("checkpoint")[0].as_py()
    kept = {name: delta for name, delta in cache.get_all_deltas().items() if name != f"zoo/{path}"}
    shutil.rmtree(own / "new")
    DeltaCache(own / "new").save_deltas(kept)
    lay(own, **new(own), missing_delta="zeros", overwrite=True)
    before = tree(own / "over")
    cache.save_delta(f"zoo/{path}", np.ones(opened.record.delta_width, np.float32))
    spoil(own / "over" / FIRST)
    assert mend(own, *all_of(own)).code == 0
    assert tree(own / "over") == before
    assert check(own / "over", level="deep").sound


def test_a_plain_set_still_needs_its_zoo(own):
    name = next(path.name for path in (own / "base").glob("*.tar"))
    spoil(own / "base" / name)
    done = here("repair", own / "base", "--deltas", own / "old", "-q", "--format", "json")
    assert done.code == 1
    assert "Give what it was packed from: --zoo DIR --deltas DIR." in done.json["refused"][0]["reason"]
