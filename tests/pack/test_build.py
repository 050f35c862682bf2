"""A build gives the same bytes whatever the machine is like, and does what its options say."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from llgbm_pack import PackOptions, build
from llgbm_shards import ShardSet, check
from llgbm_shards.errors import LockedError, UsageError
from support.commands import here, run
from support.tiny_zoo import tree, write_adapter, write_deltas, write_zoo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny/zoo with 9 checkpoints of 3 tasks, tiny/deltas; nobody writes to them."""
    root = tmp_path_factory.mktemp("tiny")
    paths = write_zoo(root / "zoo", 9)
    write_deltas(root / "deltas", paths)
    return root


def pack(tiny, out, **options):
    """Build here and now; three samples a shard unless told otherwise."""
    given = {"deltas": tiny / "deltas", "shard_bytes": 5000, "workers": 1, **options}
    report = build(PackOptions(**{"zoo": tiny / "zoo", "out": out, **given}))
    assert check(out).sound
    return report


def rows(out, *columns):
    table = ShardSet(out).index(list(columns)).to_pylist()
    return [tuple(row.values()) if len(columns) > 1 else row[columns[0]] for row in table]


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The set that one worker gives."""
    out = tmp_path_factory.mktemp("reference") / "out"
    report = pack(tiny, out)
    assert (report.packed, report.shards, report.exit_code) == (9, 3, 0)
    return tree(out)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_show(tiny, reference, tmp_path, workers):
    pack(tiny, tmp_path / "out", workers=workers)
    assert tree(tmp_path / "out") == reference


def test_place_and_spelling_of_the_zoo_do_not_show(tiny, reference, tmp_path, monkeypatch):
    moved = tmp_path / "another disk" / "deeper"
    shutil.copytree(tiny, moved)
    monkeypatch.chdir(moved)
    args = ("--deltas", "deltas", "--shard-bytes", "5000", "--workers", 1, "-q")
    for zoo, out in (("zoo", "../relative"), ("./zoo/", "../dotted"), (moved / "zoo", tmp_path / "absolute")):
        assert here("build", zoo, out, *args).code == 0
        assert tree(moved / out) == reference


def test_demo_with_texts_umask_time_zone_and_language(demo_zoo, tmp_path):
    """Here with one worker, and as a command on what might be another machine."""
    args = ["--deltas", demo_zoo.deltas, "--text-tokenizer", demo_zoo.tokenizer, "--missing-delta", "skip"]
    args += ["--form", "prompt", "--form", "prompt_answer", "--shard-bytes", "100KiB", "-q"]
    assert here("build", demo_zoo.zoo, tmp_path / "a", *args, "--workers", 1).code == 0
    elsewhere = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    done = run("build", demo_zoo.zoo, tmp_path / "b", *args, "--workers", 2, env=elsewhere, umask=0o077)
    assert (done.code, done.err) == (0, "")
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert first == second
    text = b"\n".join(first.values())
    for trace in (demo_zoo.root, tmp_path, Path.home()):
        assert str(trace).encode() not in text, trace


def test_the_dry_run_writes_nothing_and_is_near(demo_zoo, tmp_path):
    args = ["--deltas", demo_zoo.deltas, "--text-tokenizer", demo_zoo.tokenizer, "--missing-delta", "skip"]
    for forms in (["--form", "prompt"], ["--form", "prompt", "--form", "answer", "--form", "prompt_answer"]):
        command = ["build", demo_zoo.zoo, tmp_path / "out", *args, *forms, "--workers", 1, "--format", "json"]
        plan = here(*command, "--dry-run")
        assert plan.code == 0
        assert not any(tmp_path.iterdir())
        report = here(*command)
        assert plan.json["samples"] == report.json["packed"] == 22
        assert plan.json["estimated_bytes"] == pytest.approx(report.json["set_bytes"], rel=0.1)
        shutil.rmtree(tmp_path / "out")


def test_include_exclude_and_limit(tiny, tmp_path):
    report = pack(tiny, tmp_path / "a", include=("alpha/*", "beta/*"), exclude=("*/run_004",))
    assert sorted(rows(tmp_path / "a", "checkpoint")) == [
        "alpha/run_000", "alpha/run_003", "alpha/run_006", "beta/run_001", "beta/run_007",
    ]  # fmt: skip
    assert (report.found, report.excluded, report.packed) == (9, 4, 5)
    report = pack(tiny, tmp_path / "b", limit=2)
    assert sorted(rows(tmp_path / "b", "checkpoint")) == ["alpha/run_000", "alpha/run_003"]
    assert (report.found, report.excluded, report.packed) == (9, 7, 2)


def test_a_name_that_two_checkpoints_have_means_neither_when_one_is_excluded(tmp_path):
    for path in ("one/x", "two/x"):
        write_adapter(tmp_path / "zoo" / path, 1)
    (tmp_path / "zoo" / "manifest.json").write_text(json.dumps({"x": {"task": "T"}}))
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", exclude=("two/*",), workers=1))
    assert rows(tmp_path / "out", "checkpoint", "task") == [("one/x", "one")]


@pytest.mark.parametrize("by", ["task", "checkpoint"])
def test_split(tiny, tmp_path, by):
    pack(tiny, tmp_path / "out", split=0.4, split_by=by, seed=3)
    found = rows(tmp_path / "out", "split", "task")
    assert {split for split, _ in found} == {"train", "val"}
    whole = all(
        len({split for split, task in found if task == name}) == 1 for name in ("alpha", "beta", "gamma")
    )
    assert whole == (by == "task")
    assert list((tmp_path / "out").glob("val-000000.tar"))


@pytest.mark.parametrize(("split", "empty"), [(1e-9, "val"), (1 - 1e-9, "train")])
def test_a_split_that_gets_nothing_is_told(tiny, tmp_path, split, empty):
    report = pack(tiny, tmp_path / "out", split=split)
    assert report.splits == {{"val": "train", "train": "val"}[empty]: 9}
    [note] = report.notes
    assert f"no checkpoint falls into the split {empty}" in note.what
    assert pack(tiny, tmp_path / "none", split=0).notes == ()


def test_folders_that_are_not_entered_are_told(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    write_adapter(tmp_path / "copy" / "zoo" / "alpha" / "tmp-run_9", 1)
    report = pack(tmp_path / "copy", tmp_path / "out")
    assert (report.found, report.ignored) == (9, ("alpha/tmp-run_9",))
    done = here("build", tmp_path / "copy" / "zoo", tmp_path / "x", "--dry-run")
    assert "ignored    1 hidden or tmp- folders: alpha/tmp-run_9" in done.out


def test_shard_bytes_and_seed(tiny, tmp_path):
    assert pack(tiny, tmp_path / "one", shard_bytes=1).shards == 9
    assert pack(tiny, tmp_path / "all").shards == 3
    pack(tiny, tmp_path / "other", seed=1)
    first, second = (rows(tmp_path / name, "checkpoint") for name in ("all", "other"))
    assert first != second
    assert sorted(first) == sorted(second)


def test_forms_and_max_texts(demo_zoo, tmp_path):
    options = {"zoo": demo_zoo.zoo, "workers": 1, "text_tokenizer": str(demo_zoo.tokenizer), "limit": 2}
    report = build(PackOptions(**options, out=tmp_path / "out", forms=("answer", "prompt"), max_texts=3))
    sample = ShardSet(tmp_path / "out").read_sample(0)
    assert (report.exit_code, sorted(sample.texts)) == (0, ["answer", "prompt"])
    assert len(sample.json["texts"]) == 3
    assert all(len(offsets) == 4 for _, offsets in sample.texts.values())


def test_casting_and_padding(tmp_path):
    write_zoo(tmp_path / "zoo", 2, dtype="float32", rank=4)
    write_adapter(tmp_path / "zoo/alpha/low", 7, dtype="float16", rank=2)
    report = build(
        PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", dtype="bfloat16", rank=6, workers=1)
    )
    assert (report.packed, report.exit_code) == (3, 0)
    assert ShardSet(tmp_path / "out").layout.rank == 6
    assert ShardSet(tmp_path / "out").layout.dtype == "bfloat16"


def test_equal_weights_are_told(tmp_path):
    for name in ("a", "b", "c"):
        write_adapter(tmp_path / "zoo" / name, 0 if name != "c" else 1)
    report = build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    assert report.duplicates == (("a", "b"),)
    done = here("build", tmp_path / "zoo", tmp_path / "again", "--workers", 1, "-q")
    assert "equal      a, b" in done.out


def test_the_rate_is_of_packing(tiny, tmp_path):
    report = pack(tiny, tmp_path / "out")
    sizes = sum(path.stat().st_size for path in (tiny / "zoo").rglob("*.safetensors"))
    assert report.source_bytes == sizes
    assert 0 < report.packing_seconds < report.seconds


def _race(tiny, root, start, results):
    for number in range(20):
        start.wait()
        try:
            pack(tiny, root / f"{number}")
            results.put((number, "packed"))
        except (LockedError, UsageError) as error:
            results.put((number, error.what))


def test_twenty_races_of_two_builders_give_one_sound_set_each(tiny, reference, tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llgbm_pack.packing.build"])
    start, results = processes.Barrier(2, timeout=60), processes.SimpleQueue()
    racers = [processes.Process(target=_race, args=(tiny, tmp_path, start, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
    found = [results.get() for _ in range(40)]
    for racer in racers:
        racer.join(60)
    for number in range(20):
        ends = sorted(what for race, what in found if race == number)
        assert ends in (["being packed by another process", "packed"], ["packed", "this set is finished"])
        assert tree(tmp_path / f"{number}") == reference, number


def test_the_report_reads_well(tiny, tmp_path):
    done = here("build", tiny / "zoo", tmp_path / "out", "--deltas", tiny / "deltas", "--workers", 1)
    assert done.code == 0
    assert done.out.startswith(
        "packed     9 of 9 checkpoints, 13 tokens each\nskipped    0, 0 of them for a fault\n"
    )
    assert f"digest     {ShardSet(tmp_path / 'out').digest}" in done.out
    assert done.err == "packing 9 checkpoints into 1 shard\n"
    record = json.loads((tmp_path / "out/shardset.json").read_bytes())
    assert record["options"]["zoo"] == "zoo"
