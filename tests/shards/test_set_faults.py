"""Faults of a whole set: shards missing, swapped, renamed, duplicated, foreign; records and indices of other times."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from llgbm_shards import DamageError, ShardSet, StorageError, UsageError, check
from llgbm_shards.canonical import blake3_hex, dump_json
from support.edited_set import rewrite
from support.synthetic import write_set

FIRST, SECOND, THIRD = (f"train-{number:06d}.tar" for number in range(3))


def found(path, **options):
    """(shard, key, what) of everything a check finds."""
    report = check(path, **options)
    assert report.exit_code == (1 if report.findings else 0)
    return [(finding.shard, finding.key, finding.what) for finding in report.findings]


@pytest.mark.parametrize("level", ["quick", "full"])
def test_missing_shard_is_named_with_what_it_held(made, level):
    (made.path / THIRD).unlink()
    assert found(made.path, level=level) == [(THIRD, "", "missing, with its 2 samples")]


def test_swapped_shards_are_told_from_damaged_ones(made):
    (made.path / FIRST).rename(made.path / "aside")
    (made.path / SECOND).rename(made.path / FIRST)
    (made.path / "aside").rename(made.path / SECOND)
    whats = {shard: what for shard, _, what in found(made.path) if "size" not in what}
    assert whats == {
        FIRST: f"not the shard of this name: it holds the bytes of {SECOND}",
        SECOND: f"not the shard of this name: it holds the bytes of {FIRST}",
    }


def test_renamed_shard_is_missing_and_found_again(made):
    (made.path / FIRST).rename(made.path / "train-000007.tar")
    assert found(made.path) == [
        (FIRST, "", "missing, with its 5 samples"),
        (
            "train-000007.tar",
            "",
            f"a shard that is not of this set: it holds the bytes of {FIRST}",
        ),
    ]


def test_duplicated_shard_is_named(made):
    shutil.copy(made.path / SECOND, made.path / "train-000003.tar")
    what = f"a shard that is not of this set: it holds the bytes of {SECOND}"
    assert found(made.path) == [("train-000003.tar", "", what)]
    assert found(made.path, level="quick") == [("train-000003.tar", "", "a shard that is not of this set")]


def test_foreign_shard_in_the_place_of_one_is_named(made, tmp_path):
    other = write_set(tmp_path / "other", 12, shard_samples=5, seed=1, prefix="elsewhere")
    shutil.copy(other.path / FIRST, made.path / FIRST)
    whats = [what for shard, _, what in found(made.path) if "size" not in what]
    first = f"{other.samples[0].key}.pieces.safetensors"
    assert whats == [
        f"not the shard of this name: a sound shard of another set, which begins with {first}",
    ]


def test_unfinished_file_and_stray_tokenizer_file_are_named(made):
    (made.path / ".tmp-train-000001.tar-1-ab").write_bytes(b"x")
    (made.path / "tokenizer").mkdir()
    (made.path / "tokenizer" / "added_tokens.json").write_text("{}")
    (made.path / "tokenizer" / "more").symlink_to(made.path)
    (made.path / "train-000001.TAR").write_bytes(b"x")
    (made.path / "train-000000.tar.bak").write_bytes(b"x")
    (made.path / "README.md").write_text("anything: the card is not covered")
    assert found(made.path) == [
        (".tmp-train-000001.tar-1-ab", "", "a file that a writer left unfinished"),
        ("tokenizer/added_tokens.json", "", "a file that is not of this set"),
        ("tokenizer/more", "", "a file that is not of this set"),
        ("train-000000.tar.bak", "", "a shard that is not of this set"),
        ("train-000001.TAR", "", "a shard that is not of this set"),
    ]


def test_a_link_to_itself_is_one_unreadable_shard(made):
    (made.path / THIRD).unlink()
    (made.path / THIRD).symlink_to(THIRD)
    report = check(made.path)
    [finding] = report.findings
    assert (finding.shard, finding.kind, report.exit_code) == (THIRD, "unreadable", 3)


def test_unfinished_set_is_not_taken_for_a_set(made):
    (made.path / "shardset.json").unlink()
    (made.path / ".pack").mkdir()
    [(shard, _, what)] = found(made.path)
    assert shard == "shardset.json"
    assert what.startswith("the set is unfinished: its build has not committed")
    with pytest.raises(DamageError, match="Run the same build command again"):
        ShardSet(made.path)


def test_lost_record_differs_from_a_directory_without_a_set(made, tmp_path):
    (made.path / "shardset.json").unlink()
    assert found(made.path)[0][2].startswith("the commit record is missing")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path / "empty")[0][2].startswith("not a shard set")
    for opened in (check, ShardSet):
        with pytest.raises(StorageError, match="no such directory"):
            opened(tmp_path / "nowhere")


def test_stale_index_is_named_and_does_not_hide_damage(made, tmp_path):
    other = write_set(tmp_path / "other", 12, shard_samples=5, seed=1)
    shutil.copy(other.path / "index.parquet", made.path / "index.parquet")
    assert [shard for shard, _, _ in found(made.path)] == ["index.parquet"]
    extent = next(iter(ShardSet(other.path).shard_extents(SECOND)))[1]
    _flip(made.path / SECOND, extent.offset)
    [index, damage] = found(made.path)
    assert index[0] == "index.parquet"
    assert damage[:2] == (SECOND, made.by_key()[extent.key].key)
    assert damage[2].startswith("damaged: expected digest")


def test_without_an_index_a_damaged_json_leaves_only_its_own_sample_in_doubt(made):
    extents = list(ShardSet(made.path).shard_extents(FIRST))
    (made.path / "index.parquet").unlink()
    _flip(made.path / FIRST, extents[2][-1].offset)  # The brace that opens the json.
    missing, doubt = found(made.path)
    assert missing == ("index.parquet", "", "missing")
    assert doubt[:2] == (FIRST, extents[2][0].key)
    assert "belong to no readable sample" in doubt[2]


def test_without_an_index_a_json_of_other_types_leaves_only_its_own_sample_in_doubt(made):
    first = ShardSet(made.path).keys[0]

    def edit(key, members):
        info = json.loads(members["json"])
        for row in info["members"] if key == first else []:
            row["size"] = float(row["size"])
        return {**members, "json": dump_json(info)}

    rewrite(made.path, edit, relist=False)
    (made.path / "index.parquet").unlink()
    missing, doubt = found(made.path)
    assert missing == ("index.parquet", "", "missing")
    assert doubt[:2] == (FIRST, first)


def test_edited_record_is_damage_and_a_consistently_edited_one_needs_the_pinned_digest(made):
    pinned = ShardSet(made.path).digest
    path = made.path / "shardset.json"
    fields = json.loads(path.read_bytes())
    fields["options"] = {"seed": 1}
    path.write_bytes(dump_json(fields))
    [(shard, _, what)] = found(made.path)
    assert shard == "shardset.json"
    assert what.startswith("edited or damaged")
    del fields["digest"]
    path.write_bytes(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))
    assert found(made.path) == []
    [(_, _, what)] = found(made.path, expect_digest=pinned)
    assert what.startswith(f"another set than expected: expected digest {pinned}")
    with pytest.raises(UsageError, match="another set than expected"):
        ShardSet(made.path, expect_digest=pinned)


def test_record_that_forgets_a_shard_does_not_fit_the_index(made):
    path = made.path / "shardset.json"
    fields = json.loads(path.read_bytes())
    del fields["shards"][1], fields["digest"]
    path.write_bytes(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))
    whats = {(shard, what) for shard, _, what in found(made.path, level="quick")}
    assert ("index.parquet", f"index and record disagree on {SECOND}, split train: 5 and 0 samples") in whats
    assert (SECOND, "a shard that is not of this set") in whats


def test_duplicate_key_in_the_index_is_named(made):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = ShardSet(made.path).index()
    keys = table.column("key").to_pylist()
    keys[7] = keys[0]
    table = table.set_column(0, table.schema.field("key"), pa.array(keys))
    pq.write_table(table, made.path / "index.parquet", store_schema=False)
    data = (made.path / "index.parquet").read_bytes()
    _change_record(
        made.path,
        lambda fields: fields["files"].__setitem__(
            0, {"name": "index.parquet", "size": len(data), "digest": blake3_hex(data)}
        ),
    )
    assert ("index.parquet", keys[0], "the key stands in the index more than once") in found(
        made.path, level="quick"
    )


def test_bytes_after_the_end_are_found(made):
    with (made.path / FIRST).open("ab") as file:
        file.write(bytes(512))
    whats = [what for _, _, what in found(made.path)]
    assert len(whats) == 2
    assert any("more bytes after it" in what for what in whats)


def test_two_damaged_samples_and_a_damaged_file_are_all_listed(made):
    opened = ShardSet(made.path)
    first, last = opened.extents(0)[3], opened.extents(11)[0]
    _flip(made.path / first.shard, first.offset + 1)
    _flip(made.path / last.shard, last.offset - 400)
    (made.path / "skipped.json").write_bytes(b"{}")
    assert [(shard, key) for shard, key, _ in found(made.path)] == [
        ("skipped.json", ""),
        (FIRST, first.key),
        (THIRD, last.key),
    ]


def _flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    os.utime(path)


def _change_record(path, change):
    fields = json.loads((path / "shardset.json").read_bytes())
    del fields["digest"]
    change(fields)
    (path / "shardset.json").write_bytes(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))
