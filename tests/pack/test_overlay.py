"""An overlay holds what a fresh build with the new deltas or texts would hold, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from llgbm_pack import DeltaCache
from llgbm_pack.packing import overlay as overlay_module
from llgbm_pack.packing.overlay import overlay
from llgbm_pack.plan import overlay as plan_module
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_shards import DamageError, ShardSet, check
from llgbm_shards.errors import PlanError, UsageError
from support.commands import here, wait_until
from support.damage import flipped
from support.overlays import COUNT, FORMS, NEW_WIDTH, build_set, lay, members_of, new, write_sources
from support.tiny_zoo import tree, write_deltas
from support.unfinished import Stop, StopAfter, leftovers

FIRST = "train-000000.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = write_sources(tmp_path_factory.mktemp("overlay"))
    build_set(root, "base", "old", "bert")
    build_set(root, "fresh", "new", "qwen2", forms=FORMS)
    lay(root, **new(root))
    return root


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made, tmp_path / "own")


@pytest.fixture
def small_shards(monkeypatch):
    """Two samples to a shard."""
    monkeypatch.setattr(plan_module, "_SHARD_BYTES", 10000)


def test_it_equals_a_fresh_build_member_for_member(made):
    over, fresh, base = (ShardSet(made / name) for name in ("over", "fresh", "base"))
    assert over.keys == base.keys == fresh.keys
    assert over.record.members == ("texts", "delta", "json")
    assert (over.record.base, base.record.base) == (base.digest, "")
    assert (over.record.texts, over.record.delta_width) == (fresh.record.texts, NEW_WIDTH)
    expected = {
        key: {field: data[field] for field in over.record.members} for key, data in members_of(fresh).items()
    }
    assert members_of(over) == expected
    columns = ["key", "split", "checkpoint", "task", "base_model", "rank", "has_delta", "delta_norm"]
    assert over.index(columns).equals(fresh.index(columns))
    assert {name: data for name, data in tree(made / "over").items() if name.startswith("tokenizer/")} == {
        name: data for name, data in tree(made / "fresh").items() if name.startswith("tokenizer/")
    }


def test_a_plain_reader_reads_it_and_finds_no_weights(made):
    sample = ShardSet(made / "over").read_sample(0)
    assert (sample.pieces, sample.scales, sample.source) == (None, None, None)
    assert sample.delta.shape == (NEW_WIDTH,)
    assert set(sample.texts) == set(FORMS)


def test_check_of_every_level_and_inspect(made):
    for level in ("quick", "full", "deep"):
        report = check(made / "over", level=level)
        assert (report.findings, report.samples) == ((), COUNT)
        assert report.base == ShardSet(made / "base").digest
    assert f"base       {report.base}" in here("inspect", made / "over").out
    assert "delta      " in here("inspect", made / "over", ShardSet(made / "over").keys[0]).out


@pytest.mark.parametrize("options", ["deltas", "texts"])
def test_deltas_or_texts_alone(made, own, options):
    given = {"deltas": made / "new"} if options == "deltas" else {"forms": FORMS}
    fresh = build_set(
        own,
        "fresh",
        "new" if options == "deltas" else "old",
        "bert",
        **({"forms": FORMS} if options == "texts" else {}),
    )
    lay(own, "other", **given)
    opened = ShardSet(own / "other")
    own_field = "delta" if options == "deltas" else "texts"
    assert opened.record.members == (own_field, "json")
    assert check(own / "other", level="deep").sound
    both = members_of(opened), members_of(fresh)
    for key in opened.keys:
        assert both[0][key][own_field] == both[1][key][own_field]
        assert both[0][key]["json"] == both[1][key]["json"]


def test_of_a_base_without_deltas_and_texts(own):
    shutil.rmtree(own / "base")
    build_set(own, "base", None, None)
    with pytest.raises(UsageError, match=r"(?s)no text tokenizer.*--text-tokenizer NAME"):
        lay(own, "other", forms=FORMS)
    lay(own, "other", **new(own))
    assert members_of(ShardSet(own / "other")) == members_of(ShardSet(own / "over"))


def test_newer_texts_by_dataset(own):
    (own / "texts").mkdir()
    rows = [{"prompt": f"new {number}", "response": "yes"} for number in range(5)]
    (own / "texts" / "alpha_train.json").write_text(json.dumps(rows))
    report = lay(own, "other", texts=own / "texts")
    assert report.text_sources == {"base": 6, "texts-dir": 3}
    for info in (one["json"] for one in members_of(ShardSet(own / "other")).values()):
        from_directory = info["task"] == "alpha"
        assert info["text_source"] == ("texts-dir" if from_directory else "prompts.json")
        assert (info["texts"][0]["prompt"] == "new 0") is from_directory
    assert check(own / "other", level="deep").sound
    (own / "texts" / "alpha_train.json").write_text("[3]")
    with pytest.raises(PlanError, match=r"(?s)texts cannot be used.*alpha_train.json"):
        lay(own, "again", texts=own / "texts")
    (own / "texts" / "alpha_train.json").rename(own / "texts" / "delta.json")
    with pytest.raises(PlanError, match=r"(?s)no file of any dataset"):
        lay(own, "again", texts=own / "texts")


def _forget(root, path):
    value = json.loads((root / "new" / "manifest.json").read_text())
    value["adapters"] = {
        key: info for key, info in value["adapters"].items() if info["path"] != f"zoo/{path}"
    }
    (root / "new" / "manifest.json").write_text(json.dumps(value))


def test_missing_deltas(own):
    _forget(own, "beta/run_001")
    with pytest.raises(PlanError, match=r"(?s)1 checkpoints have no delta.*beta/run_001") as caught:
        lay(own, "other", deltas=own / "new")
    assert "skip" not in str(caught.value)
    assert not (own / "other").exists()
    report = lay(own, "other", deltas=own / "new", missing_delta="zeros")
    assert report.with_delta == COUNT - 1
    rows = ShardSet(own / "other").index(["checkpoint", "has_delta", "delta_norm"]).to_pylist()
    (row,) = [row for row in rows if not row["has_delta"]]
    assert row == {"checkpoint": "beta/run_001", "has_delta": False, "delta_norm": 0.0}
    assert check(own / "other", level="deep").sound


def test_faulty_and_stale_deltas(own):
    cache = DeltaCache(own / "new")
    cache.save_delta("zoo/beta/run_001", np.ones(NEW_WIDTH, np.float32), source_digest="0" * 64)
    report = lay(own, "other", deltas=own / "new")
    assert [(note.checkpoint, note.what[:11]) for note in report.notes] == [("beta/run_001", "stale delta")]
    assert not lay(own, "strict", deltas=own / "new", strict=True).committed
    cache.save_delta("zoo/beta/run_001", np.ones(7, np.float32))
    with pytest.raises(PlanError, match=r"(?s)1 deltas cannot be used.*beta/run_001.*another width"):
        lay(own, "again", deltas=own / "new")


@pytest.mark.parametrize("prefix", ["/somewhere/zoo", "/cluster/elsewhere", "", "zoo"])
def test_joins_wherever_the_zoo_lay(own, prefix):
    shutil.rmtree(own / "new")
    paths = ShardSet(own / "base").index(["checkpoint"]).column("checkpoint").to_pylist()
    write_deltas(own / "new", sorted(paths), prefix=prefix or ".", width=NEW_WIDTH)
    lay(own, "other", deltas=own / "new")
    infos = [one["json"]["delta"] for one in members_of(ShardSet(own / "other")).values()]
    assert {info["matched_by"] for info in infos} == {"path"}


def test_another_zoo_joins_nothing(own):
    shutil.rmtree(own / "new")
    write_deltas(own / "new", ["delta/other_1", "delta/other_2"])
    with pytest.raises(PlanError, match=r"(?s)9 checkpoints have no delta"):
        lay(own, "other", deltas=own / "new")


def test_of_a_part_of_a_zoo_a_delta_of_another_folder_joins_nothing(own):
    """As a build refuses it: the one that it may be of is known to the zoo, but not to the set."""
    build_set(own, "base", None, None, include=("alpha/*",))
    (own / "new" / "manifest.json").unlink()
    paths = ShardSet(own / "base").index(["checkpoint"]).column("checkpoint").to_pylist()
    named = {path: f"beta/great_{path[-1]}" for path in paths}
    for path, name in named.items():
        (own / "zoo" / path).rename(own / "zoo" / "alpha" / name.partition("/")[2])
    build_set(own, "base", None, None, include=("alpha/*",))
    write_deltas(own / "new", sorted(named.values()), width=NEW_WIDTH)
    with pytest.raises(
        PlanError, match=r"(?s)3 deltas may be of checkpoints that the base left out.*alpha/great_0"
    ):
        lay(own, "other", deltas=own / "new")
    assert not (own / "other").exists()
    mapped = lay(own, "other", deltas=own / "new", maps=(("zoo/beta", "zoo/alpha"),))
    assert mapped.with_delta == 3
    shutil.rmtree(own / "new")
    write_deltas(own / "new", [name.replace("beta", "alpha") for name in named.values()], width=NEW_WIDTH)
    assert lay(own, "again", deltas=own / "new").with_delta == 3


def test_an_overlay_of_an_overlay(own):
    with pytest.raises(UsageError, match=r"(?s)BASE is an overlay itself.*Name the set that it was made of"):
        overlay(OverlayOptions(base=own / "over", out=own / "other", deltas=own / "new"))


def test_a_text_that_the_new_tokenizer_cannot_give_back(own):
    from support.tiny_tokenizers import save_tiny

    text = json.dumps([{"prompt": "ends in </s>"}])
    (own / "texts").mkdir()
    (own / "texts" / "alpha.json").write_text(text)
    save_tiny("byt5", own / "byt5")
    with pytest.raises(
        PlanError, match=r"(?s)alpha/run_.*first text cannot be rebuilt.*every sample of its base"
    ):
        lay(own, "other", texts=own / "texts", text_tokenizer=str(own / "byt5"))


def test_a_damaged_base(own):
    base = ShardSet(own / "base")
    extent = base.extents(0)[-1]
    with (
        flipped(own / "base" / extent.shard, 8 * (extent.offset + 5)),
        pytest.raises(DamageError, match=rf"(?s)^{own}/base/{extent.shard} sample {extent.key} json"),
    ):
        lay(own, "other", deltas=own / "new")
    lay(own, "other", deltas=own / "new")
    assert check(own / "other").sound


def _lay_in_small_shards(root):
    plan_module._SHARD_BYTES = 1
    lay(root, "killed", **new(root))


@pytest.mark.slow
def test_killed_again_and_again(own, monkeypatch):
    monkeypatch.setattr(plan_module, "_SHARD_BYTES", 1)  # a sample a shard
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llgbm_pack.packing.overlay"])
    killed = 0
    for goal in range(COUNT):
        process = processes.Process(target=_lay_in_small_shards, args=(own,))
        process.start()
        wait_until(
            lambda g=goal, p=process: len(list((own / "killed").glob("*.tar"))) >= g or not p.is_alive()
        )
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed > COUNT // 2
    if not (own / "killed" / "shardset.json").exists():
        lay(own, "killed", **new(own))
    lay(own, "whole", **new(own))
    assert tree(own / "killed") == tree(own / "whole")


@pytest.mark.slow
def test_workers_do_not_show(made, own, small_shards):
    assert lay(own, "one", **new(own)).shards > 3
    lay(own, "two", **new(own), workers=2)
    assert tree(own / "one") == tree(own / "two")


def test_broken_off_and_resumed(own, small_shards):
    options = OverlayOptions(base=own / "base", out=own / "broken", **new(own))
    with pytest.raises(Stop):
        overlay(options, progress=StopAfter(5))
    assert not (own / "broken" / "shardset.json").exists()
    with pytest.raises(PlanError, match=r"(?s)unfinished build of another plan.*forms"):
        overlay(replace(options, forms=("answer",)))
    report = overlay(options)
    assert 0 < report.resumed < report.samples == COUNT
    overlay(replace(options, out=own / "whole"))
    assert tree(own / "broken") == tree(own / "whole")
    assert not leftovers(own / "broken")
    with pytest.raises(UsageError, match=r"(?s)this set is finished"):
        overlay(options)


def test_an_input_changed_meanwhile_is_packed_again(own, small_shards):
    options = OverlayOptions(base=own / "base", out=own / "broken", **new(own))
    with pytest.raises(Stop):
        overlay(options, progress=StopAfter(5))
    entries = DeltaCache(own / "new").get_all_deltas()
    DeltaCache(own / "new").save_deltas({path: 2 * delta for path, delta in entries.items()})
    overlay(options)
    overlay(replace(options, out=own / "whole"))
    assert tree(own / "broken") == tree(own / "whole")


def test_of_nothing_new_and_over_its_base(own):
    with pytest.raises(UsageError, match=r"(?s)nothing new is asked for"):
        lay(own, "other")
    with pytest.raises(UsageError, match=r"(?s)base and output overlap"):
        overlay(OverlayOptions(base=own / "base", out=own / "base", deltas=own / "new"))


def test_it_never_replaces_a_set_with_weights(own):
    before = tree(own / "fresh")
    with pytest.raises(
        UsageError, match=r"(?s)/fresh: OUT is a set with weights: expected an overlay to replace"
    ):
        lay(own, "fresh", deltas=own / "new", overwrite=True)
    assert tree(own / "fresh") == before
    record = own / "fresh" / "shardset.json"
    record.write_bytes(record.read_bytes()[:-9])
    before = tree(own / "fresh")
    with pytest.raises(UsageError, match="OUT may be a set with weights: its commit record is damaged"):
        lay(own, "fresh", deltas=own / "new", overwrite=True)
    assert tree(own / "fresh") == before
    assert lay(own, "over", deltas=own / "new", overwrite=True).committed


def test_commands_that_want_weights_say_where_they_are(made, tmp_path):
    key, digest = ShardSet(made / "over").keys[0], ShardSet(made / "base").digest
    for args in (
        ("stats", made / "over", "-o", tmp_path / "s"),
        ("export", made / "over", key, tmp_path / "e"),
    ):
        done = here(*args)
        assert done.code == 2
        assert "an overlay has no weights: expected a set with weights" in done.err
        assert f"Name the set it was made of, digest {digest}" in done.err
    assert not list(tmp_path.iterdir())


def test_the_command(own):
    done = here(
        "overlay",
        own / "base",
        own / "other",
        "--deltas",
        own / "new",
        "--form",
        "answer",
        "--format",
        "json",
    )
    assert done.code == 0, done.err
    assert re.search(r"packing 9 checkpoints into \d shards", done.err)
    value = done.json
    assert (value["samples"], value["members"], value["with_delta"]) == (
        COUNT,
        ["texts", "delta", "json"],
        COUNT,
    )
    assert value["digest"] == ShardSet(own / "other").digest
    text = here("overlay", own / "base", own / "other", "--deltas", own / "new", "--overwrite", "-q")
    assert (text.code, text.err) == (0, "")
    assert f"base       {value['base']}" in text.out
    assert here("overlay", own / "base", own / "no", "--missing-delta", "zeros").code == 2
    assert here("overlay", own / "base", own / "no").code == 2
    assert here("overlay", own / "base", own / "other", "--deltas", own / "new").code == 2
    assert overlay_module.overlay is overlay
