"""The check command: exit codes, what it prints, its seeds, and the comparison with a zoo."""

from __future__ import annotations

import json
import os
import random
import shutil
import string

import pytest

from llgbm_pack import PackOptions, build
from llgbm_shards import ShardSet
from support.commands import here, run
from support.damage import flipped, owners
from support.synthetic import write_set
from support.tiny_zoo import write_adapter, write_zoo

SHARD = "train-000000.tar"


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", 12, shard_samples=5).path


def test_sound_set_exits_0_and_prints_the_digest(made):
    done = here("check", made)
    assert done.code == 0
    assert f"{made}: sound (12 samples in 3 shards, full check, " in done.out
    assert f"digest {ShardSet(made).digest}" in done.out


def test_random_flips_exit_1_and_name_the_sample(made):
    table = owners(ShardSet(made), SHARD)
    chosen = random.Random(0)
    for _ in range(40):
        byte = chosen.randrange(len(table))
        with flipped(made / SHARD, 8 * byte + chosen.randrange(8)):
            done = here("check", made, "--format", "json")
        assert done.code == 1
        [finding] = done.json["findings"]
        assert (finding["shard"], finding["key"]) == (SHARD, table[byte][0])
        assert not done.json["sound"]


def test_the_installed_programs_exit_1_on_damage_without_torch(made):
    byte = ShardSet(made).extents(3)[0].offset
    with flipped(made / SHARD, 8 * byte):
        for program, arguments in (("llgbm-check", [made]), ("llgbm-pack", ["check", made])):
            done = run(*arguments, program=program)
            assert done.code == 1
            key = ShardSet(made).keys[3]
            assert f"damage  {SHARD} {key} pieces.safetensors: damaged: expected digest " in done.out
            assert "NOT SOUND, 1 findings" in done.out


@pytest.mark.parametrize("spoil", [lambda shard: shard.unlink(), lambda shard: os.truncate(shard, 1000)])
def test_damage_names_the_command_that_mends_it(made, spoil):
    spoil(made / SHARD)
    told = here("check", made).out
    assert f"`llgbm-pack repair {made} --zoo ZOO` puts back what is missing" in told
    assert "one lost sample of each group comes back without --zoo" in told


def test_what_no_repair_can_mend_names_no_command(made, tmp_path):
    (tmp_path / "unfinished" / ".pack").mkdir(parents=True)
    for arguments in ([made, "--expect-digest", "0" * 64], [tmp_path / "unfinished"], [tmp_path]):
        done = here("check", *arguments)
        assert done.code == 1
        assert "llgbm-pack repair" not in done.out


def test_check_imports_no_torch(made):
    import subprocess
    import sys

    code = (
        "import sys; from llgbm_pack.cli.commands import check_main\n"
        "try: check_main([sys.argv[1], '--level', 'deep', '-q'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code, made], check=True, capture_output=True)


def test_codes_of_what_cannot_be_done(made, tmp_path):
    assert here("check", tmp_path / "nowhere").code == 3
    assert here("check", made, "--level", "none").code == 2
    for share in ("0%", "101%", "x", "-5%"):
        assert here("check", made, "--sample", share).code == 2
    (made / SHARD).unlink()
    (made / SHARD).symlink_to(SHARD)  # A loop: it cannot be opened.
    done = here("check", made)
    assert done.code == 3
    assert "unreadable  train-000000.tar: cannot be read: Too many levels of symbolic links" in done.out


def test_expected_digest(made):
    assert here("check", made, "--expect-digest", ShardSet(made).digest).code == 0
    done = here("check", made, "--expect-digest", "00" * 32)
    assert done.code == 1
    assert "another set than expected" in done.out
    assert here("check", made, "--expect-digest", ShardSet(made).digest.upper()).code == 0
    for wrong in ("", "latest", "00" * 31):
        done = here("check", made, "--expect-digest", wrong)
        assert (done.code, done.out) == (2, "")
        assert "not a digest" in done.err


def test_names_from_data_give_the_terminal_no_orders(made):
    (made / "\x1b]0;title\x07\x1b[31m\u202ex.tar").write_bytes(b"")
    (made / os.fsdecode(b"\xff\x9b.tar")).write_bytes(b"")
    for more in ([], ["--format", "json"]):
        done = run("check", made, *more, encoding="utf-8", errors="strict")  # also: valid UTF-8
        assert done.code == 1
        assert set(done.out) - set(string.printable) == set()
        assert "title" in done.out
    names = {finding["shard"] for finding in done.json["findings"]}
    assert "\x1b]0;title\x07\x1b[31m\u202ex.tar" in names


def test_a_name_that_is_too_long_is_no_traceback(tmp_path):
    done = here("check", tmp_path / ("a" * 300))
    assert (done.code, done.out) == (3, "")
    assert "name too long" in done.err


def test_sampling_says_what_it_read_and_with_which_seed(made):
    done = here("check", made, "--sample", "50%", "--seed", 3)
    assert "0.5 of them, seed 3" in done.out
    halves = [
        here("check", made, "--sample", "0.5", "--seed", seed, "--format", "json").json for seed in (0, 1)
    ]
    assert sum(half["samples_read"] for half in halves) == 12


def test_long_lists_are_cut_short_but_not_with_v(tmp_path):
    made = write_set(tmp_path / "set", 30, shard_samples=30).path
    (made / SHARD).write_bytes((made / SHARD).read_bytes()[:100_000])
    short, long = here("check", made), here("check", made, "-v")
    assert "more findings in train-000000.tar (-v lists all)" in short.out
    assert len(long.out.splitlines()) > len(short.out.splitlines())
    assert short.code == long.code == 1


@pytest.fixture
def packed(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 6)
    write_adapter(tmp_path / "zoo" / "odd", 9, rank=2)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    return tmp_path, paths


def test_against_an_unchanged_zoo_that_has_moved(packed):
    root, _ = packed
    (root / "zoo").rename(root / "elsewhere")
    done = here("check", root / "out", "--against", root / "elsewhere", "--format", "json")
    assert done.code == 0
    against = done.json["against"]
    assert (against["unchanged"], against["skipped"], against["same"]) == (6, 1, True)


def test_against_names_new_changed_and_gone_checkpoints(packed):
    root, paths = packed
    shutil.rmtree(root / "zoo" / paths[0])
    write_adapter(root / "zoo" / paths[1], 77)
    (root / "zoo" / paths[2] / "adapter_model.safetensors").unlink()
    (root / "zoo" / paths[2] / "adapter_model.bin").write_bytes(b"x")
    write_adapter(root / "zoo" / "alpha" / "run_new", 78)
    done = here("check", root / "out", "--against", root / "zoo", "--format", "json")
    against = done.json["against"]
    assert against["new"] == ["alpha/run_new"]
    assert against["gone"] == [paths[0]]
    whats = {change["checkpoint"]: change["what"] for change in against["changed"]}
    assert whats.keys() == {paths[1], paths[2]}
    assert whats[paths[1]].startswith("other weights: packed from digest ")
    assert against["unchanged"] == 3
    assert done.code == 0  # The set is sound: what the zoo became is told, not judged.
    text = here("check", root / "out", "--against", root / "zoo").out
    assert f"gone     {paths[0]}" in text
    assert "3 unchanged, 1 new, 2 changed, 1 gone, 1 skipped by the build" in text


def test_against_a_damaged_set_says_why_it_is_not_compared(packed):
    root, _ = packed
    (root / "out" / "index.parquet").write_bytes(b"x")
    done = here("check", root / "out", "--against", root / "zoo", "--format", "json")
    assert done.code == 1
    assert done.json["against"] is None
    assert "not the index that was committed" in done.json["against_problem"]
    json.dumps(done.json)


def test_a_sound_set_that_could_not_be_compared_is_no_success(packed):
    root, _ = packed
    (root / "zoo" / "manifest.json").write_text("{")
    done = here("check", root / "out", "--against", root / "zoo", "--format", "json")
    assert (done.json["sound"], done.code) == (True, 3)
    assert "manifest.json" in done.json["against_problem"]
