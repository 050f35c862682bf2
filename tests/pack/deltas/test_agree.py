"""Deltas that could be another's: two candidates, names against paths, a folder that is another."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from llgbm_pack import DeltaCache
from llgbm_pack.raw.deltas import DeltaSource, join_verified
from llgbm_shards import ShardSet
from llgbm_shards.errors import UsageError
from support.commands import here
from support.refusals import pack, refused
from support.tiny_zoo import DELTA_WIDTH, write_adapter

ONE, OTHER = np.ones(DELTA_WIDTH, np.float32), np.full(DELTA_WIDTH, 2, np.float32)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Two checkpoints, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "zoo" / "p" / "lora_a", 0)
    write_adapter(tmp_path / "zoo" / "q" / "lora_b", 1)
    return tmp_path / "zoo"


def cache(zoo, deltas):
    DeltaCache(zoo.parent / "deltas").save_deltas(
        {path.format(zoo=zoo): delta for path, delta in deltas.items()}
    )
    return zoo.parent / "deltas"


def named_cache(zoo, adapters):
    """A cache of the second form: name -> (path, delta, task)."""
    folder = zoo.parent / "named"
    folder.mkdir()
    rows = {}
    for name, (path, delta, task) in adapters.items():
        np.save(folder / f"{name}.npy", delta)
        rows[name] = {"adapter_path": path, "delta_file": f"{name}.npy", "task": task}
        rows[name]["delta_norm"] = float(np.linalg.norm(delta))
    (folder / "delta_manifest.json").write_text(json.dumps({"adapters": rows}))
    return folder


SPELLINGS = ["zoo", "{zoo}", "{zoo}/", "./zoo", "link"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("second", ["{zoo}/p/lora_a", "/old/place/p/lora_a", "p/lora_a"])
def test_two_candidates_are_refused_however_the_zoo_is_spelled(zoo, spelling, second):
    (zoo.parent / "link").symlink_to(zoo)
    deltas = cache(zoo, {"zoo/p/lora_a": ONE, second: OTHER, "zoo/q/lora_b": ONE})
    done = here("build", spelling.format(zoo=zoo), zoo.parent / "out", "--deltas", deltas)
    assert done.code == 2
    assert "1 checkpoints with more than one delta" in done.err
    assert "zoo/p/lora_a" in done.err
    assert second.format(zoo=zoo) in done.err


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_candidates_of_equal_values_are_told(zoo, spelling):
    (zoo.parent / "link").symlink_to(zoo)
    deltas = cache(zoo, {"zoo/p/lora_a": ONE, "{zoo}/p/lora_a": ONE, "zoo/q/lora_b": OTHER})
    build = ("build", spelling.format(zoo=zoo), zoo.parent / "out", "--deltas", deltas)
    done = here(*build)
    assert done.code == 0
    assert "p/lora_a: 2 equal deltas are recorded for it" in done.out
    made = ShardSet(zoo.parent / "out")
    deltas_of = {made.read_sample(key).json["checkpoint"]: made.read_sample(key).delta for key in made.keys}
    assert np.array_equal(deltas_of["p/lora_a"], ONE)
    assert here(*build, "--strict", "--overwrite").code == 1


def test_candidates_of_equal_values_are_repaired_alike(zoo):
    deltas = cache(zoo, {"zoo/p/lora_a": ONE, "{zoo}/p/lora_a": ONE, "zoo/q/lora_b": OTHER})
    assert here("build", "zoo", "out", "--deltas", deltas).code == 0
    shard = next((zoo.parent / "out").glob("*.tar"))
    before = shard.read_bytes()
    shard.unlink()
    done = here("repair", "out", "--zoo", "zoo", "--deltas", deltas)
    assert done.code == 0, done.err
    assert shard.read_bytes() == before


@pytest.mark.parametrize("path", ["{zoo}/q/lora_b", "/old/zoo/q/lora_b"])
def test_a_name_against_a_path_is_refused(zoo, path):
    adapters = {"lora_a": (path.format(zoo=zoo), ONE, "")}
    refused(
        pack(zoo, "--deltas", named_cache(zoo, adapters), "--missing-delta", "skip"),
        "2 checkpoints with more than one delta that could be theirs, or one that contradicts itself",
        "its path is q/lora_b's, its name p/lora_a's",
    )


def test_a_folder_that_is_another_is_told(zoo, caplog):
    deltas = cache(zoo, {"/m/boolq/lora_a": ONE, "zoo/q/lora_b": OTHER})
    done = here("build", zoo, "out", "--deltas", deltas)
    assert done.code == 0
    assert "p/lora_a: delta joined by its last folder alone: it was recorded as /m/boolq/lora_a" in done.out
    assert here("build", zoo, "out", "--overwrite", "--deltas", deltas, "--strict").code == 1
    with caplog.at_level(logging.WARNING):
        join_verified(DeltaSource(deltas), ["p/lora_a", "q/lora_b"], zoo_root=zoo)
    assert "p/lora_a: delta joined by its last folder alone" in caplog.text


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("linked", ["zoo/lnk/lora_a", "{zoo}/lnk/lora_a", "lnk/lora_a", "link/lnk/lora_a"])
def test_a_link_inside_the_zoo_is_a_second_candidate(zoo, spelling, linked):
    (zoo.parent / "link").symlink_to(zoo)
    (zoo / "lnk").symlink_to("p")
    write_adapter(zoo / "q" / "lora_a", 2)
    deltas = cache(zoo, {"zoo/p/lora_a": ONE, linked: OTHER, "zoo/q/lora_b": ONE})
    build = ("build", spelling.format(zoo=zoo), zoo.parent / "out", "--deltas", deltas)
    done = here(*build, "--missing-delta", "skip")
    assert done.code == 2
    assert "1 checkpoints with more than one delta" in done.err
    assert "zoo/p/lora_a" in done.err
    assert linked.format(zoo=zoo) in done.err


@pytest.mark.parametrize(("task", "code"), [("boolq", 2), ("p", 1), ("", 1)])
@pytest.mark.parametrize("leaf", ["checkpoint-300", "final"])
def test_a_folder_of_a_common_name_makes_no_difference(zoo, leaf, task, code):
    write_adapter(zoo / "p" / "foo" / leaf, 2)
    adapters = {
        "a": ("zoo/p/lora_a", ONE, ""),
        "b": ("zoo/q/lora_b", ONE, ""),
        "c": (f"/m/boolq/foo/{leaf}", OTHER, task),
    }
    done = here("build", zoo, "out", "--strict", "--deltas", named_cache(zoo, adapters))
    assert done.code == code, done.err
    told = f"p/foo/{leaf}: delta joined by its last folders alone (foo/{leaf}): it was recorded as /m/boolq/foo/{leaf}"
    assert (told in done.out) == (code == 1)


@pytest.mark.parametrize(("task", "code"), [("boolq", 2), ("p", 0), ("", 0)])
@pytest.mark.parametrize("path", ["/m/boolq/foo/bar", "/m/boolq/xyz"])
def test_a_delta_of_another_task_is_refused_by_name_and_by_more_folders(zoo, path, task, code):
    write_adapter(zoo / "p" / "foo" / "bar", 2)
    adapters = {
        "lora_a": ("zoo/p/lora_a", ONE, ""),
        "lora_b": ("zoo/q/lora_b", ONE, ""),
        "bar": (path, OTHER, task),
    }
    done = here("build", zoo, "out", "--strict", "--deltas", named_cache(zoo, adapters))
    assert done.code == code, done.err
    assert ("and the cache calls its task 'boolq'" in done.err) == (code == 2)


@pytest.mark.parametrize(("task", "code"), [("boolq", 2), ("p", 0), ("", 0)])
def test_a_delta_of_another_task_is_refused(zoo, task, code):
    adapters = {"lora_a": ("/m/boolq/lora_a", ONE, task), "lora_b": ("/m/q/lora_b", OTHER, "any")}
    done = here("build", zoo, "out", "--deltas", named_cache(zoo, adapters))
    assert done.code == code, done.err
    assert ("its task 'boolq'" in done.err) == (code == 2)


def test_the_zoos_own_manifest_says_what_a_task_is_called(zoo):
    rows = {"adapters": [{"path": "zoo/p/lora_a", "task": "boolq"}]}
    (zoo / "manifest.json").write_text(json.dumps(rows))
    adapters = {"lora_a": ("/m/boolq/lora_a", ONE, "boolq"), "lora_b": ("/m/q/lora_b", OTHER, "")}
    assert here("build", zoo, "out", "--deltas", named_cache(zoo, adapters)).code == 0


def test_raw_datasets_refuse_the_same(zoo):
    two = cache(zoo, {"zoo/p/lora_a": ONE, "{zoo}/p/lora_a": OTHER})
    with pytest.raises(UsageError, match="more than one delta"):
        join_verified(DeltaSource(two), ["p/lora_a", "q/lora_b"], zoo_root=zoo)
    named = named_cache(zoo, {"lora_a": (f"{zoo}/q/lora_b", ONE, "")})
    with pytest.raises(UsageError, match="contradicts itself"):
        join_verified(DeltaSource(named), ["p/lora_a", "q/lora_b"], zoo_root=zoo)


def test_a_cache_asked_for_one_checkpoint_looks_at_all_candidates(zoo):
    found = DeltaCache(cache(zoo, {"zoo/p/lora_a": ONE, "{zoo}/p/lora_a": ONE}))
    assert np.array_equal(found.get_delta_for_checkpoint("zoo/p/lora_a"), ONE)
    found.save_delta("zoo/p/lora_a", OTHER)
    for spelling in ("zoo/p/lora_a", zoo / "p" / "lora_a"):
        with pytest.raises(UsageError, match="two deltas"):
            found.get_delta_for_checkpoint(spelling)
