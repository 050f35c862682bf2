"""Repair decides as the build did which checkpoint is packed and which one a delta belongs to."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_pack.upkeep.repair import repair
from llgbm_pack.upkeep.repair_shards import RepairOptions
from support.tiny_zoo import tree, write_adapter, write_zoo

pytestmark = pytest.mark.slow

FIRST = "train-000000.tar"


def pack(root, *, deltas=None, **options):
    build(PackOptions(zoo=root / "zoo", out=root / "out", deltas=deltas, workers=1, **options))
    return tree(root / "out")


def flip(path, byte=2000):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def mend(root, deltas=None):
    return repair(RepairOptions(out=root / "out", zoo=root / "zoo", deltas=deltas))


def copy_adapter(source, target):
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(source / name, target / name)


@pytest.fixture
def namesakes(tmp_path):
    """``b/modelx``, which cannot be packed, claims the delta of its own, which leaves ``a/modelx`` another one."""
    for seed, path in enumerate(["a/modelx", "a/modely", "b/modelx"]):
        write_adapter(tmp_path / "zoo" / path, seed)
    weights = tmp_path / "zoo" / "b" / "modelx" / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    keys = ["old/modelx", "old/modely", "zoo/b/modelx"]
    rng = np.random.default_rng(0)
    DeltaCache(tmp_path / "deltas").save_deltas(
        {key: rng.standard_normal(24).astype(np.float32) for key in keys}
    )
    return tmp_path


@pytest.mark.parametrize("filters", [{}, {"include": ("run*",)}])
def test_a_run_that_finished_since_does_not_take_its_checkpoints_place(tmp_path, filters):
    write_zoo(tmp_path / "zoo", 3)
    run = tmp_path / "zoo" / "run"
    write_adapter(run / "checkpoint-100", 77)
    before = pack(tmp_path, **filters)
    flip(tmp_path / "out" / FIRST)
    copy_adapter(run / "checkpoint-100", run)
    report = mend(tmp_path)
    assert (report.exit_code, report.restored, report.refused) == (0, (FIRST,), ())
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("filters", [{"exclude": ("b/*",)}, {"include": ("a/*",)}, {"limit": 2}, {}])
def test_a_delta_is_claimed_by_what_filters_left_out_and_could_not_be_packed(namesakes, filters):
    before = pack(namesakes, deltas=namesakes / "deltas", **filters)
    flip(namesakes / "out" / FIRST)
    report = mend(namesakes, namesakes / "deltas")
    assert (report.exit_code, report.restored, report.refused) == (0, (FIRST,), ())
    assert tree(namesakes / "out") == before


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("[]")])
def test_a_shard_and_the_skipped_list_come_back_in_one_run(namesakes, spoil):
    before = pack(namesakes, deltas=namesakes / "deltas")
    flip(namesakes / "out" / FIRST)
    spoil(namesakes / "out" / "skipped.json")
    report = mend(namesakes, namesakes / "deltas")
    assert (report.exit_code, set(report.restored), report.refused) == (0, {FIRST, "skipped.json"}, ())
    assert tree(namesakes / "out") == before


def test_a_shard_comes_back_though_the_skipped_list_cannot(namesakes):
    before = pack(namesakes, deltas=namesakes / "deltas")
    flip(namesakes / "out" / FIRST)
    (namesakes / "out" / "skipped.json").unlink()
    write_adapter(namesakes / "zoo" / "c" / "odd", 9, rank=2)  # skipped by a build now
    report = mend(namesakes, namesakes / "deltas")
    assert (report.restored, [one.name for one in report.refused]) == ((FIRST,), ["skipped.json"])
    del before["skipped.json"]
    assert tree(namesakes / "out") == before
