"""Deltas that are missing, double, damaged or of something else."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from llgbm_pack import DeltaCache
from llgbm_pack.raw.deltas import DeltaSource, join_verified
from llgbm_shards import ShardSet
from llgbm_shards.errors import UsageError
from support.commands import here
from support.refusals import pack, refused
from support.tiny_zoo import tree, write_deltas

GOOD = 4


def test_rank_below_all(zoo):
    cache = write_deltas(zoo.parent / "deltas", ["alpha/run_000"])
    refused(pack(zoo, "--rank", 2, "--deltas", cache), "none of 4 checkpoints", "rank does not fit")


@pytest.fixture
def deltas(zoo):
    """Deltas of all four."""
    paths = [str(file.parent.relative_to(zoo)) for file in zoo.rglob("adapter_config.json")]
    return write_deltas(zoo.parent / "deltas", sorted(paths))


def manifest(deltas):
    return json.loads((deltas / "manifest.json").read_text())


def rewrite(deltas, change):
    """Change the manifest's entries, by the path they are of."""
    value = manifest(deltas)
    by_path = {info["path"]: (key, info) for key, info in value["adapters"].items()}
    change(by_path, value["adapters"])
    (deltas / "manifest.json").write_text(json.dumps(value))


def file_of(deltas, path):
    (key,) = [key for key, info in manifest(deltas)["adapters"].items() if info["path"] == f"zoo/{path}"]
    return deltas / f"{key}.npy"


PATH = "alpha/run_003"


def wide(deltas):
    DeltaCache(deltas).save_delta(f"zoo/{PATH}", np.ones(99, np.float32))


def infinite(deltas):
    array = np.load(file_of(deltas, PATH))
    array[3] = np.inf
    np.save(file_of(deltas, PATH), array)


def scaled(deltas):
    np.save(file_of(deltas, PATH), 2 * np.load(file_of(deltas, PATH)))


def gone(deltas):
    file_of(deltas, PATH).unlink()


def pickled(deltas):
    np.save(file_of(deltas, PATH), np.array([{}, {}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wide, "delta of another width.*expected 24, got 99"),
        (infinite, "delta not finite.*got 1 other"),
        (scaled, "delta of another norm than its manifest says: expected"),
        (gone, "the delta cannot be read"),
        (pickled, "array of another dtype"),
    ],
)
def test_a_bad_delta_skips_its_checkpoint(zoo, deltas, spoil, said):
    spoil(deltas)
    done = pack(zoo, "--deltas", deltas, "--format", "json")
    assert done.code == 1, done.err
    (skip,) = done.json["skipped"]
    assert skip["checkpoint"] == PATH
    assert re.search(said, skip["reason"]), skip["reason"]
    assert str(zoo.parent) not in skip["reason"]
    assert done.json["packed"] == GOOD - 1


def forget(deltas, *paths):
    def change(by_path, adapters):
        for path in paths:
            del adapters[by_path[f"zoo/{path}"][0]]

    rewrite(deltas, change)


def test_missing_deltas_are_all_listed_and_nothing_is_written(zoo, deltas):
    forget(deltas, "alpha/run_003", "beta/run_001")
    before = tree(zoo.parent)
    refused(
        pack(zoo, "--deltas", deltas),
        "2 checkpoints have no delta",
        "\n  alpha/run_003\n  beta/run_001",
        "--missing-delta skip",
    )
    assert tree(zoo.parent) == before


def test_missing_deltas_by_policy(zoo, deltas):
    forget(deltas, "alpha/run_003")
    done = pack(zoo, "--deltas", deltas, "--missing-delta", "skip", "--format", "json")
    assert (done.code, done.json["packed"]) == (0, GOOD - 1)
    assert done.json["skipped"][0]["fault"] is False
    out = zoo.parent / "zeros"
    assert here("build", zoo, out, "--deltas", deltas, "--missing-delta", "zeros", "--workers", 1).code == 0
    opened = ShardSet(out)
    by_path = {row["checkpoint"]: row["key"] for row in opened.index(["checkpoint", "key"]).to_pylist()}
    sample = opened.read_sample(by_path["alpha/run_003"])
    assert not sample.delta.any()
    assert (sample.json["has_delta"], sample.json["delta"]["norm"]) == (False, 0.0)


def test_two_candidates_are_both_listed(zoo, deltas):
    cache = DeltaCache(deltas)
    forget(deltas, "alpha/run_003")
    for value, place in enumerate(("one", "two")):
        cache.save_delta(f"{place}/zoo/{PATH}", np.full(24, value, np.float32))
    before = tree(zoo.parent)
    refused(
        pack(zoo, "--deltas", deltas),
        "1 checkpoints with more than one delta",
        rf"{PATH}: .*one/zoo/{PATH}.* or .*two/zoo/{PATH}",
        "--map",
    )
    assert tree(zoo.parent) == before


def test_deltas_of_two_base_models(zoo, deltas):
    def change(by_path, adapters):
        by_path[f"zoo/{PATH}"][1]["base_model"] = "another/base"

    rewrite(deltas, change)
    refused(pack(zoo, "--deltas", deltas), "more than one base model", "another/base: 1")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("base_model", "another/base", "more than one base model: .*another/base: 1"),
        ("probes", ["a", "b"], "more than one set of probes: .*2 texts"),
        ("layer", -2, "more than one layer: .*-2: 1"),
        ("dtype", "float16", "more than one dtype: .*float16: 1"),
    ],
)
def test_deltas_measured_in_two_ways(zoo, deltas, field, value, said):
    DeltaCache(deltas).save_config(
        {"base_model": "a/base", "probes": ["a"], "layer": -1, "dtype": "bfloat16"}
    )
    assert pack(zoo, "--deltas", deltas, "--dry-run").code == 0
    rewrite(deltas, lambda by_path, _adapters: by_path[f"zoo/{PATH}"][1].update({field: value}))
    refused(pack(zoo, "--deltas", deltas), said)
    with pytest.raises(UsageError, match=said):
        join_verified(DeltaSource(deltas), [PATH, "alpha/run_000"], zoo_root=zoo)
    assert len(join_verified(DeltaSource(deltas), ["alpha/run_000"], zoo_root=zoo).entries) == 1


def test_probes_of_their_own_are_no_mix(zoo, deltas):
    """In the second form each adapter may have a file of its own probes."""

    def change(by_path, _adapters):
        for number, (_key, info) in enumerate(by_path.values()):
            info.update(probes_file=f"{number}.json", num_probes=number + 1)

    for number in range(GOOD):
        (deltas / f"{number}.json").write_text(json.dumps({"probes": [f"probe {number}"]}))
    rewrite(deltas, change)
    assert pack(zoo, "--deltas", deltas, "--dry-run").code == 0


def test_a_cache_without_a_manifest(zoo, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(pack(zoo, "--deltas", tmp_path / "empty"), "no delta cache", r"manifest\.json")


def test_deltas_of_another_zoo(zoo, tmp_path):
    cache = write_deltas(tmp_path / "cache", ["other/thing"], prefix="elsewhere")
    refused(
        pack(zoo, "--deltas", cache, "--missing-delta", "skip"), "no delta belongs to any checkpoint", "--map"
    )
