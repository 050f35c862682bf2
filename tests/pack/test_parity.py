"""A build with parity: what lies beside each shard, whatever the workers and whatever breaks it off."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llgbm_pack import PackOptions, build
from llgbm_pack.plan.plan import make_plan
from llgbm_shards import DamageError, ShardSet, StorageError, check
from llgbm_shards.names import parity_name
from llgbm_shards.parity import ParityRows, stretch
from llgbm_shards.record import record_of
from llgbm_shards.tensors import decode_arrays
from support.commands import here
from support.tiny_zoo import random_pairs, tree, write_adapter, write_zoo

GROUPS = 2


def options(root, out="out", **more):
    given = {"workers": 1, "parity": GROUPS, "shard_bytes": 5000, **more}
    return PackOptions(zoo=root / "zoo", out=root / out, **given)


@pytest.fixture
def root(tmp_path):
    """A zoo of 7: shards of 3, 3 and 1."""
    write_zoo(tmp_path / "zoo", 7)
    return tmp_path


def rows(out, shard):
    """The parity that a shard should have, record by record."""
    data = (out / shard).read_bytes()
    records = [data[start : start + size] for start, size in map(stretch, ShardSet(out).shard_extents(shard))]
    found = np.zeros((GROUPS, max(map(len, records))), np.uint8)
    for number, record in enumerate(records):
        found[number % GROUPS, : len(record)] ^= np.frombuffer(record, np.uint8)
    return found


def test_each_shard_has_the_xor_of_its_groups(root):
    report = build(options(root))
    record = ShardSet(root / "out").record
    assert [shard.samples for shard in record.shards] == [3, 3, 1]
    for shard in record.shards:
        path = root / "out" / parity_name(shard.name)
        arrays = decode_arrays(path.read_bytes(), where=path.name)
        assert list(arrays) == ["parity"]
        assert np.array_equal(arrays["parity"], rows(root / "out", shard.name))
        assert record.file(path.name).size == path.stat().st_size
    assert record.options["parity"] == GROUPS
    assert report.parity_bytes == sum(path.stat().st_size for path in (root / "out").glob("*.parity"))
    for level in ("quick", "full", "deep"):
        assert check(root / "out", level=level).sound


def test_workers_do_not_show_and_parity_changes_no_other_file(root):
    for name, more in {"one": {}, "two": {"workers": 2}, "none": {"parity": 0}}.items():
        build(options(root, name, **more))
    one, none = tree(root / "one"), tree(root / "none")
    assert one == tree(root / "two")
    # The record names the files and options, the index and the card's neighbour carry a copy of the options.
    own = {name for name in one if none.get(name) != one[name]}
    assert {name for name in own if not name.endswith(".parity")} == {"index.parquet", "shardset.json"}


def test_the_estimate_counts_parity(root):
    plan = make_plan(options(root))
    report = build(options(root))
    assert plan.estimated_bytes == pytest.approx(report.set_bytes + report.parity_bytes, rel=0.25)


@pytest.fixture
def breaks_at_second(monkeypatch):
    """The parity of the second shard cannot be written."""
    save, done = ParityRows.save, []

    def saving(rows, path):
        done.append(path)
        if len(done) == 2:
            raise StorageError("no space left on the device", where=path.name)
        return save(rows, path)

    monkeypatch.setattr(ParityRows, "save", saving)
    yield
    monkeypatch.undo()


def broken_off(root, **more):
    with pytest.raises(StorageError, match="no space left"):
        build(options(root, **more))
    return root / "out"


def test_broken_off_between_shard_and_parity_it_gives_the_same_bytes(root, breaks_at_second):
    out = broken_off(root)
    assert len(list(out.glob("*.tar"))) == 2
    assert len(list(out.glob("*.parity"))) == 1
    assert build(options(root)).resumed == 3
    build(options(root, "unbroken"))
    assert tree(out) == tree(root / "unbroken")


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_finished_shard_whose_parity_is_not_there_is_packed_again(root, breaks_at_second, how):
    out = broken_off(root)
    (parity,) = out.glob("*.parity")
    if how == "cut":
        parity.write_bytes(parity.read_bytes()[:-1])
    else:
        parity.unlink()
    assert build(options(root)).resumed == 0
    build(options(root, "unbroken"))
    assert tree(out) == tree(root / "unbroken")


def test_a_shard_emptied_by_skips_has_none(root, breaks_at_second):
    out = broken_off(root, shard_bytes=1)  # a sample a shard
    (parity,) = out.glob("*.parity")
    plan = json.loads((out / ".pack" / "plan.json").read_text())
    [path] = plan["shards"][f"{parity.stem}.tar"]
    tensors = random_pairs(50)
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_adapter(root / "zoo" / path, 50, tensors=tensors)
    report = build(options(root, shard_bytes=1))
    assert [skip.checkpoint for skip in report.skipped] == [path]
    assert not parity.exists()
    assert not parity.with_suffix(".tar").exists()
    assert check(out).sound


def test_another_parity_is_another_plan(root, breaks_at_second):
    broken_off(root)
    done = here("build", root / "zoo", root / "out", "--shard-bytes", 5000, "--parity", 3, "-q")
    assert done.code == 2
    assert "parity 3 (was 2)" in done.err


def test_it_is_told(root):
    command = ["build", root / "zoo", root / "out", "--parity", 2, "--workers", 1, "-q"]
    assert "parity included" in here(*command, "--dry-run").out
    assert " of parity, in " in here(*command).out
    assert "parity     one sample of each of 2 groups a shard, " in here("inspect", root / "out").out
    assert here(*command, "--overwrite").code == 0
    (root / "out" / "note.parity").write_text("mine")
    assert "note.parity" in here(*command, "--overwrite").err


@pytest.mark.parametrize("groups", [0, 1025, True, "2", None])
def test_a_record_that_lists_other_parity_than_its_options_is_refused(root, groups):
    build(options(root))
    record = ShardSet(root / "out").record
    about = {**record.about(), "options": {**record.options, "parity": groups}}
    with pytest.raises(DamageError, match="parity"):
        record_of(about, record.shards, record.files)
    with pytest.raises(DamageError, match="parity files of other shards"):
        record_of(record.about(), record.shards[1:], record.files)


def test_a_share_reads_a_share_of_the_parity(root):
    out = root / "out"
    build(options(root, shard_bytes=1))
    for path in out.glob("*.parity"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert len(check(out, level="quick").findings) == 7
    found = [finding.shard for seed in range(4) for finding in check(out, sample=0.25, seed=seed).findings]
    assert sorted(found) == sorted(path.name for path in out.glob("*.parity"))
