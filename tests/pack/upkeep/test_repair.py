"""Repair puts back exactly what is damaged, to the bit, or says what changed and touches nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_pack.packing.lock import builder_lock
from llgbm_shards import ShardSet, check
from support.commands import here
from support.tiny_zoo import random_pairs, tree, write_adapter, write_deltas, write_zoo

pytestmark = pytest.mark.slow

FIRST, SECOND = "train-000000.tar", "train-000001.tar"


@pytest.fixture(scope="module")
def made(demo_zoo, tmp_path_factory):
    """Nine checkpoints with texts and deltas in shards of three; three more are skipped, each for another reason."""
    root = tmp_path_factory.mktemp("repair")
    paths = write_zoo(root / "zoo", 9)
    tensors = random_pairs(50)
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_adapter(root / "zoo" / "beta" / "nan", 50, tensors=tensors)
    write_adapter(root / "zoo" / "beta" / "odd", 51, rank=2)
    write_adapter(root / "zoo" / "beta" / "lonely", 52)
    write_deltas(root / "deltas", [*paths, "beta/nan", "beta/odd"])
    shutil.copytree(demo_zoo.tokenizer, root / "tokenizer")
    report = build(
        PackOptions(
            zoo=root / "zoo",
            out=root / "out",
            deltas=root / "deltas",
            text_tokenizer=str(root / "tokenizer"),
            missing_delta="skip",
            shard_bytes=5000,
            workers=1,
        )
    )
    assert (report.packed, report.shards, len(report.skipped)) == (9, 4, 3)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that may be damaged; the same tree under another path."""
    return shutil.copytree(made, tmp_path / "copy")


def mend(root, *extra, deltas=True):
    given = ["--deltas", root / "deltas"] if deltas else []
    return here("repair", root / "out", "--zoo", root / "zoo", *given, "-q", "--format", "json", *extra)


def flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def stamps(out):
    """What a rewritten file would change: inode and times."""
    status = {path.name: path.stat() for path in out.glob("*.*")}
    return {name: (one.st_ino, one.st_mtime_ns) for name, one in status.items()}


def in_shard(root, shard):
    rows = ShardSet(root / "out").index(["shard", "checkpoint"]).to_pylist()
    return [row["checkpoint"] for row in rows if row["shard"] == shard]


def refuse(root, *extra, **options):
    """Repair, and expect one refusal and nothing touched."""
    before = tree(root / "out")
    done = mend(root, *extra, **options)
    assert done.code == 1
    assert done.json["restored"] == []
    assert tree(root / "out") == before
    [refusal] = done.json["refused"]
    return refusal["name"], refusal["reason"]


def test_sound_set_is_left_alone(root):
    before = stamps(root / "out")
    done = mend(root)
    assert (done.code, done.json["restored"], done.json["refused"]) == (0, [], [])
    assert stamps(root / "out") == before
    assert "nothing to repair" in here("repair", root / "out", "--zoo", root / "zoo").out


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped", "header"])
def test_damaged_shards_come_back_and_sound_ones_are_not_written(made, root, damage):
    out = root / "out"
    before = stamps(out)
    if damage == "flipped":
        flip(out / FIRST, 2000)
    elif damage == "header":
        flip(out / FIRST, 0)
    elif damage == "truncated":
        (out / FIRST).write_bytes((out / FIRST).read_bytes()[:-700])
    elif damage == "missing":
        (out / FIRST).unlink()
    else:
        (out / FIRST).write_bytes((out / SECOND).read_bytes())
    done = mend(root)
    assert (done.code, done.json["restored"]) == (0, [FIRST])
    assert tree(out) == tree(made / "out")
    after = stamps(out)
    assert {name for name in before if before[name] != after[name]} == {FIRST}
    assert check(out, level="deep").sound


@pytest.mark.parametrize(
    "lost",
    [
        ["index.parquet"],
        ["skipped.json"],
        ["index.parquet", "skipped.json"],
        ["index.parquet", FIRST],
        ["index.parquet", "skipped.json", FIRST, SECOND],
        [SECOND, "skipped.json"],
    ],
    ids="+".join,
)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_other_files_come_back_too(made, root, lost, how):
    for name in lost:
        if how == "missing":
            (root / "out" / name).unlink()
        else:
            flip(root / "out" / name, 1)
    done = mend(root)
    assert done.code == 0, done.json
    assert sorted(done.json["restored"]) == sorted(lost)
    assert tree(root / "out") == tree(made / "out")


def test_index_is_not_rebuilt_from_shards_that_cannot_be_put_back(root):
    path = in_shard(root, FIRST)[0]
    write_adapter(root / "zoo" / path, 99)
    (root / "out" / "index.parquet").unlink()
    flip(root / "out" / FIRST, 2000)
    done = mend(root)
    assert done.code == 1
    reasons = {refusal["name"]: refusal["reason"] for refusal in done.json["refused"]}
    assert reasons.keys() == {FIRST, "index.parquet"}
    assert reasons["index.parquet"].endswith(f"these are not: {FIRST}")


def _retrain(root, path):
    write_adapter(root / "zoo" / path, 99)


def _reword(root, path):
    (root / "zoo" / path / "prompts.json").write_text(json.dumps({"prompts": ["Who?"], "answers": ["I."]}))


def _rescale(root, path):
    config = root / "zoo" / path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 3}))


def _remeasure(root, path):
    import numpy as np

    old = {key: delta + 1 for key, delta in DeltaCache(root / "deltas").get_all_deltas().items()}
    shutil.rmtree(root / "deltas")
    DeltaCache(root / "deltas").save_deltas(
        {key: np.asarray(delta, np.float32) for key, delta in old.items()}
    )


def _remove(root, path):
    shutil.rmtree(root / "zoo" / path)


def _spoil(root, path):
    (root / "zoo" / path / "adapter_model.safetensors").write_bytes(b"short")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_retrain, "{path}: other weights"),
        (_reword, "{path}: other texts or text tokenizer"),
        (_rescale, "{path}: other weights or config"),
        (_remeasure, "{path}: other delta"),
        (_remove, "{path}: gone from the zoo"),
        (_spoil, "{path}: adapter_model.safetensors"),
    ],
)
def test_a_changed_source_is_named_and_nothing_touched(root, change, expected):
    path = in_shard(root, FIRST)[1]
    change(root, path)
    flip(root / "out" / FIRST, 2000)
    name, reason = refuse(root)
    assert name == FIRST
    assert expected.format(path=path) in reason


def test_a_changed_source_of_one_shard_does_not_keep_others_from_being_restored(made, root):
    _retrain(root, in_shard(root, FIRST)[0])
    for shard in (FIRST, SECOND):
        flip(root / "out" / shard, 2000)
    damaged = (root / "out" / FIRST).read_bytes()
    done = mend(root)
    assert (done.code, done.json["restored"]) == (1, [SECOND])
    assert [refusal["name"] for refusal in done.json["refused"]] == [FIRST]
    assert (root / "out" / FIRST).read_bytes() == damaged
    assert (root / "out" / SECOND).read_bytes() == (made / "out" / SECOND).read_bytes()


def test_a_shard_of_which_nothing_is_left_in_the_zoo_is_told_and_others_come_back(root):
    gone = in_shard(root, FIRST)
    for path in gone:
        _remove(root, path)
    (root / "out" / FIRST).unlink()
    name, reason = refuse(root)
    assert name == FIRST
    assert all(f"{path}: gone from the zoo" in reason for path in gone)
    (root / "out" / SECOND).unlink()
    assert mend(root).json["restored"] == [SECOND]


def test_the_set_says_which_checkpoints_have_a_delta(root):
    """A delta that is measured after the build is not packed by a repair."""
    write_deltas(root / "few", in_shard(root, FIRST))
    options = {"zoo": root / "zoo", "out": root / "set", "deltas": root / "few", "missing_delta": "zeros"}
    build(PackOptions(**options, shard_bytes=5000, workers=1))
    before = tree(root / "set")
    lost = [entry.name for entry in ShardSet(root / "set").record.shards]
    for name in lost:
        (root / "set" / name).unlink()
    write_deltas(root / "few", ["beta/lonely", "beta/odd", *in_shard(root, SECOND)])
    done = here(
        "repair", root / "set", "--zoo", root / "zoo", "--deltas", root / "few", "-q", "--format", "json"
    )
    assert (done.code, done.json["restored"]) == (0, lost)
    assert tree(root / "set") == before


def test_changes_of_sources_of_sound_shards_and_new_checkpoints_do_not_matter(made, root):
    others = in_shard(root, SECOND)
    _retrain(root, others[0])
    _remove(root, others[1])
    write_adapter(root / "zoo" / "alpha" / "later", 60)
    (root / "out" / FIRST).unlink()
    assert mend(root).code == 0
    assert tree(root / "out") == tree(made / "out")


def test_tasks_are_named_as_in_the_build_that_saw_a_skipped_namesake(root):
    tensors = random_pairs(50)
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_adapter(root / "other" / "good" / "x", 1)
    write_adapter(root / "other" / "bad" / "x", 50, tensors=tensors)
    (root / "other" / "manifest.json").write_text(json.dumps({"x": {"task": "T"}}))
    build(PackOptions(zoo=root / "other", out=root / "named", workers=1))
    before = tree(root / "named")
    (root / "named" / FIRST).unlink()
    done = here("repair", root / "named", "--zoo", root / "other", "-q", "--format", "json")
    assert (done.code, done.json["restored"]) == (0, [FIRST])
    assert tree(root / "named") == before


def test_sources_that_the_build_had_must_be_given(root):
    (root / "out" / FIRST).unlink()
    name, reason = refuse(root, deltas=False)
    assert name == FIRST
    assert "the set was packed with --deltas" in reason


def test_lost_record_comes_back_when_its_digest_is_known(made, root):
    digest = ShardSet(root / "out").digest
    (root / "out" / "shardset.json").unlink()
    name, reason = refuse(root)
    assert name == "shardset.json"
    assert "expected --expect-digest" in reason
    assert digest in reason
    name, reason = refuse(root, "--expect-digest", "00" * 32)
    assert "not those of the expected set" in reason
    done = mend(root, "--expect-digest", digest)
    assert (done.code, done.json["restored"], done.json["digest"]) == (0, ["shardset.json"], digest)
    assert tree(root / "out") == tree(made / "out")


def test_damaged_record_that_still_holds_its_digest_proves_itself(made, root):
    path = root / "out" / "shardset.json"
    flip(path, len(path.read_bytes()) - 100)
    (root / "out" / SECOND).unlink()
    done = mend(root)
    assert (done.code, done.json["restored"]) == (0, ["shardset.json", SECOND])
    assert tree(root / "out") == tree(made / "out")


@pytest.mark.parametrize("other", ["index.parquet", "skipped.json"])
def test_record_and_another_file_lost_is_refused_with_what_is_missing(root, other):
    digest = ShardSet(root / "out").digest
    (root / "out" / "shardset.json").unlink()
    (root / "out" / other).unlink()
    name, reason = refuse(root, "--expect-digest", digest)
    assert name == "shardset.json"
    assert f"{other}: No such file" in reason


def test_tokenizer_comes_back_from_the_tokenizer_of_the_build(made, root):
    flip(root / "out" / "tokenizer" / "tokenizer.json", 300)
    name, reason = refuse(root)
    assert name == "tokenizer/tokenizer.json"
    assert "expected --text-tokenizer" in reason
    (root / "out" / FIRST).unlink()
    done = mend(root, "--text-tokenizer", root / "tokenizer")
    assert done.code == 0, done.json
    assert tree(root / "out") == tree(made / "out")


def test_another_tokenizer_is_refused(root):
    text = (root / "tokenizer" / "tokenizer.json").read_text()
    other = json.loads(text)
    other["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(other))
    flip(root / "out" / "tokenizer" / "tokenizer.json", 300)
    _, reason = refuse(root, "--text-tokenizer", root / "tokenizer")
    assert "another text tokenizer than the set's" in reason


def test_files_that_are_not_of_the_set_are_told_and_left(root):
    shutil.copy(root / "out" / FIRST, root / "out" / "train-000009.tar")
    (root / "out" / ".tmp-unfinished").write_bytes(b"x")
    done = mend(root)
    assert done.code == 1
    [left] = done.json["left"]
    assert left["shard"] == "train-000009.tar"
    assert not (root / "out" / ".tmp-unfinished").exists()
    assert (root / "out" / "train-000009.tar").exists()


def test_locked_and_unfinished_sets_are_not_repaired(root):
    with builder_lock(root / "out" / ".pack"):
        assert mend(root).code == 3
    shutil.rmtree(root / "out" / ".pack")
    (root / "out" / ".pack").mkdir()
    (root / "out" / ".pack" / "plan.json").write_text("{}")
    assert mend(root).code == 2


def test_a_directory_that_is_no_set_is_left_as_it_is(root, tmp_path):
    other = tmp_path / "other"
    (other / ".pack").mkdir(parents=True)
    (other / ".tmp-mine").write_text("mine")
    (other / ".pack" / "mine").write_text("mine")
    done = here("repair", other, "--zoo", root / "zoo")
    assert done.code == 2
    assert "not a shard set" in done.err
    assert tree(other) == {".tmp-mine": b"mine", ".pack/mine": b"mine"}


def test_what_others_keep_where_the_lock_is_stays(root):
    (root / "out" / ".pack").mkdir()
    (root / "out" / ".pack" / "mine").write_text("mine")
    assert mend(root).code == 0
    assert tree(root / "out" / ".pack") == {"mine": b"mine"}


def test_nothing_is_written_through_a_link_for_the_tokenizer(root, tmp_path):
    shutil.move(root / "out" / "tokenizer", tmp_path / "outside")
    (root / "out" / "tokenizer").symlink_to(tmp_path / "outside")
    flip(tmp_path / "outside" / "tokenizer.json", 300)
    (tmp_path / "outside" / ".tmp-keep").write_text("mine")
    before = tree(tmp_path / "outside")
    done = mend(root, "--text-tokenizer", root / "tokenizer")
    [refusal] = done.json["refused"]
    assert (done.code, refusal["name"]) == (3, "tokenizer/tokenizer.json")
    assert "tokenizer: not a directory of the output: got a symbolic link" in refusal["reason"]
    assert tree(tmp_path / "outside") == before


def test_what_cannot_be_put_back_does_not_keep_others_from_being_restored(made, root):
    for shard in (FIRST, SECOND):
        (root / "out" / shard).unlink()
    (root / "out" / FIRST).mkdir()
    done = mend(root)
    assert (done.code, done.json["restored"]) == (1, [SECOND])
    [refusal] = done.json["refused"]
    assert refusal == {"name": FIRST, "reason": "a directory stands in its place; move it away"}
    assert (root / "out" / SECOND).read_bytes() == (made / "out" / SECOND).read_bytes()


def test_a_source_that_cannot_be_read_does_not_either(made, root, monkeypatch):
    path = in_shard(root, FIRST)[0]
    for shard in (FIRST, SECOND):
        (root / "out" / shard).unlink()
    real = os.preadv

    def preadv(fd, *rest):
        if os.readlink(f"/proc/self/fd/{fd}") == str(root / "zoo" / path / "adapter_model.safetensors"):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, *rest)

    monkeypatch.setattr(os, "preadv", preadv)
    done = mend(root)
    assert done.json["restored"] == [SECOND]
    assert [refusal["name"] for refusal in done.json["refused"]] == [FIRST]
    assert path in done.json["refused"][0]["reason"]


@pytest.mark.parametrize("name", ["skipped.json", "index.parquet"])
def test_a_lost_record_beside_a_hole_of_terabytes(root, name):
    digest = ShardSet(root / "out").digest
    (root / "out" / "shardset.json").unlink()
    os.truncate(root / "out" / name, 1 << 40)
    done = mend(root, "--expect-digest", digest)
    [refusal] = done.json["refused"]
    assert (done.code, refusal["name"]) == (1, "shardset.json")
    assert f"{name}: too large" in refusal["reason"]


def test_a_lost_record_and_an_index_of_unknown_members(root):
    path = root / "out" / "index.parquet"
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"llgbm-shards"]) | {"members": ["evil"]}
    pq.write_table(table.replace_schema_metadata({"llgbm-shards": json.dumps(about)}), path)
    (root / "out" / "shardset.json").unlink()
    name, reason = refuse(root, "--expect-digest", "00" * 32)
    assert name == "shardset.json"
    assert "evil" in reason


def test_no_trace_of_a_repair_stays(root):
    (root / "out" / FIRST).unlink()
    mend(root)
    assert not list((root / "out").rglob(".*"))


def test_mapped_deltas_and_filters_are_repaired_with_the_same_arguments(root):
    write_deltas(root / "moved", [f"{path}" for path in in_shard(root, FIRST)], prefix="/old/place")
    options = {"deltas": root / "moved", "maps": (("/old/place", str(root / "zoo")),), "workers": 1}
    build(
        PackOptions(
            zoo=root / "zoo",
            out=root / "mapped",
            missing_delta="zeros",
            exclude=("*odd*", "*nan*"),
            rank=4,
            dtype="float32",
            chunk=8,
            split=0.4,
            split_by="checkpoint",
            shard_bytes=1,
            **options,
        )
    )
    before = tree(root / "mapped")
    lost = [entry.name for entry in ShardSet(root / "mapped").record.shards][::2]
    for name in lost:
        (root / "mapped" / name).unlink()
    command = ["repair", root / "mapped", "--zoo", root / "zoo", "--deltas", root / "moved", "-q"]
    done = here(*command, "--map", f"/old/place={root / 'zoo'}", "--format", "json")
    assert (done.code, done.json["restored"]) == (0, lost)
    assert tree(root / "mapped") == before
