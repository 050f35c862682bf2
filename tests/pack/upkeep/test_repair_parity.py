"""What is lost comes back by parity, without the zoo, or is named and nothing is made worse."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from llgbm_pack import PackOptions, build
from llgbm_pack.upkeep import repair_parity
from llgbm_pack.upkeep.repair import repair
from llgbm_pack.upkeep.repair_shards import RepairOptions
from llgbm_shards import ShardSet, check
from llgbm_shards.names import parity_name
from llgbm_shards.parity import stretch
from support.commands import here
from support.tiny_zoo import tree, write_deltas, write_zoo

GROUPS = 3
#: 7 samples, more than two a group; then 2, fewer than there are groups.
FIRST, SECOND = "train-000000.tar", "train-000001.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of shards with parity; its zoo is gone."""
    root = tmp_path_factory.mktemp("parity")
    paths = write_zoo(root / "zoo", 9, prompts=("What is it?", "A longer one. " * 40))
    write_deltas(root / "deltas", paths)
    report = build(
        PackOptions(
            zoo=root / "zoo",
            out=root / "out",
            deltas=root / "deltas",
            shard_bytes=12_000,
            parity=GROUPS,
            workers=1,
        )
    )
    counts = {shard.name: shard.samples for shard in ShardSet(root / "out").record.shards}
    assert counts == {FIRST: 7, SECOND: 2}
    assert report.parity_bytes == sum(path.stat().st_size for path in (root / "out").glob("*.parity"))
    shutil.rmtree(root / "zoo")
    shutil.rmtree(root / "deltas")
    return root / "out"


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def stretches(made, shard):
    return [stretch(sample) for sample in ShardSet(made).shard_extents(shard)]


def keys(made, shard):
    return [sample[0].key for sample in ShardSet(made).shard_extents(shard)]


def spoil(made, out, shard, *numbers):
    """One byte in the middle of each of these samples."""
    for number in numbers:
        start, size = stretches(made, shard)[number]
        flip(out / shard, start + size // 2)


def flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def mended(made, out):
    """Repair puts everything back."""
    report = repair(RepairOptions(out=out))
    assert (report.exit_code, report.refused, report.left) == (0, (), ())
    assert tree(out) == tree(made)
    assert check(out, level="deep").sound
    return report.restored


def refused(out):
    """Repair puts not everything back; the refusals by name."""
    report = repair(RepairOptions(out=out))
    assert report.exit_code == 1
    return {refusal.name: refusal.reason for refusal in report.refused}


def test_one_sample_of_every_group_of_every_shard(made, out):
    spoil(made, out, FIRST, 1, 3, 5)
    spoil(made, out, SECOND, 0, 1)
    assert mended(made, out) == (FIRST, SECOND)


@pytest.mark.parametrize("number", range(7))
def test_each_sample_comes_back_alone(made, out, number):
    start, size = stretches(made, FIRST)[number]
    data = bytearray((out / FIRST).read_bytes())
    data[start : start + size] = bytes(size)
    (out / FIRST).write_bytes(data)
    assert mended(made, out) == (FIRST,)


def test_two_in_one_group_are_named_and_nothing_is_changed(made, out):
    spoil(made, out, FIRST, 0, 3)
    before = tree(out)
    lost = keys(made, FIRST)
    reason = f"2 of 7 samples are lost beyond what parity gives: {lost[0]}, {lost[3]}. "
    assert refused(out) == {FIRST: reason + "Give what it was packed from: --zoo DIR --deltas DIR."}
    assert tree(out) == before


def test_what_comes_back_is_put_back_beside_what_does_not(made, out):
    spoil(made, out, FIRST, 0, 3)
    worst = (out / FIRST).read_bytes()
    spoil(made, out, FIRST, 1)
    lost = keys(made, FIRST)
    assert refused(out)[FIRST].startswith(
        f"2 of 7 samples are lost beyond what parity gives: {lost[0]}, {lost[3]}; 1 were put back: {lost[1]}."
    )
    assert (out / FIRST).read_bytes() == worst


@pytest.mark.parametrize("left", [-1, -600, -1024, "last", "two"])
def test_truncated_shard(made, out, left):
    starts = [start for start, _ in stretches(made, FIRST)]
    size = {"last": starts[6] + 700, "two": starts[5]}.get(left, left)
    data = (out / FIRST).read_bytes()
    (out / FIRST).write_bytes(data[:size])
    assert mended(made, out) == (FIRST,)


def test_a_shard_cut_too_short_keeps_what_it_has_and_its_size_tells(made, out):
    data = (made / FIRST).read_bytes()
    starts = [start for start, _ in stretches(made, FIRST)]
    (out / FIRST).write_bytes(data[: starts[2]])  # Lost are 2 and 5, 3 and 6 with 0, 4 with 1.
    lost = keys(made, FIRST)
    reason = refused(out)[FIRST]
    assert reason.startswith(
        f"4 of 7 samples are lost beyond what parity gives: {lost[2]}, {lost[3]}, {lost[5]}, {lost[6]}; "
        f"1 were put back: {lost[4]}."
    )
    found = {finding.key for finding in check(out).findings if finding.key}
    assert found == {lost[number] for number in (2, 3, 5, 6)}
    assert [finding.shard for finding in check(out, level="quick").findings] == [FIRST]
    left = tree(out)
    assert "put back" not in refused(out)[FIRST]
    assert tree(out) == left


def test_missing_shard_of_one_sample_a_group(made, out):
    (out / SECOND).unlink()
    assert mended(made, out) == (SECOND,)


def test_missing_shard_of_more_samples_a_group(made, out):
    (out / FIRST).unlink()
    left = tree(out)
    assert refused(out)[FIRST].startswith("7 of 7 samples are lost beyond what parity gives: ")
    assert tree(out) == left


@pytest.mark.parametrize("how", ["flipped", "header", "cut", "missing"])
def test_damaged_parity_is_made_of_its_shard(made, out, how):
    path = out / parity_name(FIRST)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, 100)
    else:
        flip(path, 3 if how == "header" else -1)
    for level in ("quick", "full"):
        assert [finding.shard for finding in check(out, level=level).findings] == [path.name]
    assert mended(made, out) == (path.name,)


def test_damage_of_parity_and_of_a_sample_of_another_group(made, out):
    flip(out / parity_name(FIRST), -1)  # the row of the last group
    spoil(made, out, FIRST, 0)
    assert mended(made, out) == (FIRST, parity_name(FIRST))


def test_damage_of_parity_and_of_a_sample_of_the_group(made, out):
    start, size = stretches(made, FIRST)[2]
    longest = max(size for _, size in stretches(made, FIRST))
    parity = out / parity_name(FIRST)
    flip(parity, parity.stat().st_size - longest + 100)
    flip(out / FIRST, start + size // 2)
    before = tree(out)
    reasons = refused(out)
    assert keys(made, FIRST)[2] in reasons[FIRST]
    assert (
        reasons[parity.name] == f"it can only be made of {FIRST} and index.parquet, and these are not sound"
    )
    assert tree(out) == before


@pytest.mark.parametrize("lost", ["index.parquet", "shardset.json"])
def test_index_or_record_come_back_with_parity(made, out, lost):
    if lost == "shardset.json":
        flip(out / lost, 5)
    else:
        (out / lost).unlink()
        flip(out / parity_name(FIRST), -1)
    mended(made, out)


def test_lost_list_of_skipped_needs_the_zoo(out):
    (out / "skipped.json").unlink()
    assert refused(out) == {
        "skipped.json": "only the zoo it was packed from gives it back. Give it: --zoo DIR."
    }


def test_parity_of_another_set_is_told(out):
    (out / "train-000009.parity").write_bytes(b"")
    [finding] = check(out, level="quick").findings
    assert (finding.shard, finding.what) == (
        "train-000009.parity",
        "a parity file that is not of this set",
    )


def test_a_wrong_xor_is_found_by_deep(made, out, monkeypatch):
    monkeypatch.setattr("llgbm_shards.check_parity.parity_blocks", lambda *_: [b"other"])
    assert check(out, level="full").sound
    what = {finding.shard: finding.what for finding in check(out, level="deep").findings}
    assert set(what) == {parity_name(FIRST), parity_name(SECOND)}
    assert what[parity_name(FIRST)].startswith(f"not the XOR of {FIRST}: ")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_killed_while_it_repairs_and_run_again(made, out, monkeypatch, step):
    spoil(made, out, FIRST, 1, 3, 5)
    before = (out / FIRST).read_bytes()
    pid = os.fork()
    if pid == 0:
        name = "os.fsync" if step == "fsync" else "pathlib.Path.rename"
        monkeypatch.setattr(name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        repair_parity.ParityRestorer(ShardSet(out)).restore(ShardSet(out).record.shards[0])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (out / FIRST).read_bytes() == before
    assert [path for path in out.iterdir() if path.name.startswith(".tmp-")]
    assert mended(made, out) == (FIRST,)


def test_full_disk_changes_nothing(made, out, monkeypatch):
    spoil(made, out, FIRST, 1)
    flip(out / parity_name(SECOND), -1)
    before = tree(out)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llgbm_pack.upkeep.repair_parity.write_all", full)
    done = here("repair", out, "-q")
    assert done.code == 3
    assert "no space left on the device" in done.err
    assert tree(out) == before
    monkeypatch.undo()
    mended(made, out)


def test_a_set_without_parity(tmp_path):
    write_zoo(tmp_path / "zoo", 3)
    out = tmp_path / "out"
    build(PackOptions(zoo=tmp_path / "zoo", out=out, workers=1))
    sound = tree(out)
    os.truncate(out / FIRST, (out / FIRST).stat().st_size - 10)  # No sample is lost.
    assert here("repair", out, "-q").code == 0
    assert tree(out) == sound
    key = ShardSet(out).keys[1]
    flip(out / FIRST, stretches(out, FIRST)[1][0])
    done = here("repair", out, "-q")
    assert done.code == 1
    assert f"{FIRST}: 1 of 3 samples are lost and the set has no parity: {key}. Give what" in done.out
    assert here("repair", out, "--zoo", tmp_path / "zoo", "-q").code == 0
    assert tree(out) == sound


def test_with_a_zoo_what_parity_does_not_give_is_packed_again(tmp_path):
    write_zoo(tmp_path / "zoo", 4)
    out = tmp_path / "out"
    build(PackOptions(zoo=tmp_path / "zoo", out=out, workers=1, parity=2))
    sound = tree(out)
    for lost in ((0, 1), (0, 1, 2)):
        spoil(out, out, FIRST, *lost)
        flip(out / parity_name(FIRST), -1 if lost == (0, 1, 2) else 2)
        assert here("repair", out, "--zoo", tmp_path / "zoo", "-q").code == 0
        assert tree(out) == sound
