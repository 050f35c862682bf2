"""Every kind of bad input: a clear error or a named skip, and nothing lost."""

from __future__ import annotations

import ctypes
import json
import os
import re

import pytest

from llgbm_shards import check
from support.commands import here
from support.refusals import pack, refused
from support.spoil import ONE_BAD, pickle, truncate, with_value
from support.tiny_zoo import random_pairs, tree, write_adapter

GOOD = 4


@pytest.mark.parametrize(("spoil", "said"), ONE_BAD, ids=lambda value: getattr(value, "__name__", "words"))
def test_one_bad_checkpoint_never_stops_the_others(zoo, spoil, said):
    spoil(zoo / "beta/bad")
    done = pack(zoo, "--format", "json")
    assert done.code == 1, done.err
    assert done.json["packed"] == GOOD
    (skip,) = done.json["skipped"]
    assert (skip["checkpoint"], skip["fault"]) == ("beta/bad", True)
    assert re.search(said, skip["reason"]), skip["reason"]
    assert json.loads((zoo.parent / "out/skipped.json").read_text())["skipped"] == [skip]
    assert str(zoo.parent) not in skip["reason"]
    assert check(zoo.parent / "out").sound
    assert "\n" not in skip["reason"]


def test_the_text_report_names_it_too(zoo):
    pickle(zoo / "beta/bad")
    done = pack(zoo)
    assert "packed     4 of 5 checkpoints" in done.out
    assert "skipped    1, 1 of them for a fault" in done.out
    assert "skipped    beta/bad: adapter_model.bin is a pickle" in done.out


class Opened:
    """Whether anybody opens a file, Python or not: inotify tells."""

    def __init__(self, path):
        libc, only_open = ctypes.CDLL(None), 0x20
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), only_open) >= 0

    def seen(self):
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False


def test_a_pickle_is_never_opened(zoo):
    pickle(zoo / "beta/bad")
    opened = Opened(zoo / "beta/bad/adapter_model.bin")
    assert pack(zoo).code == 1
    assert not opened.seen()
    (zoo / "beta/bad/adapter_model.bin").open("rb").close()
    assert opened.seen()


def test_no_checkpoint_found(tmp_path):
    (tmp_path / "zoo").mkdir()
    refused(pack(tmp_path / "zoo"), "no checkpoint found", "adapter_model.safetensors")
    assert not (tmp_path / "out").exists()


def test_globs_that_match_nothing(zoo):
    refused(pack(zoo, "--include", "delta/*"), "no checkpoint is left", "4 are excluded", "--include")
    assert not (zoo.parent / "out").exists()


def test_no_such_zoo(tmp_path):
    done = pack(tmp_path / "zoo")
    assert done.code == 2
    assert "zoo" in done.err
    assert "does not exist" in done.err


def test_all_bad(tmp_path):
    for name in ("a", "b"):
        truncate(tmp_path / "zoo" / name)
    refused(pack(tmp_path / "zoo"), "none of 2 checkpoints can be packed", r"\n  a: ", r"\n  b: ")
    assert not (tmp_path / "out").exists()


def test_all_bad_on_a_closer_look(tmp_path):
    with_value(float("nan"), 2)(tmp_path / "zoo/a")
    refused(pack(tmp_path / "zoo"), "none of 1 checkpoints could be packed", "a: .*lora_A")
    assert not (tmp_path / "out/shardset.json").exists()


def test_finished(zoo):
    assert pack(zoo).code == 0
    before = tree(zoo.parent / "out")
    refused(pack(zoo), "out: this set is finished", "--overwrite")
    assert tree(zoo.parent / "out") == before


def test_being_packed_by_another_process(zoo):
    from llgbm_pack.packing.lock import builder_lock

    out = zoo.parent / "out"
    with builder_lock(out / ".pack"):
        done = pack(zoo)
    assert done.code == 3
    assert re.search(rf"being packed by another process: got host \S+, pid {os.getpid()}, since 20", done.err)
    assert [path.name for path in out.iterdir()] == [".pack"]


def test_a_tokenizer_directory_that_is_a_link_is_not_written_through(zoo, demo_zoo):
    out, victim = zoo.parent / "out", zoo.parent / "victim"
    (out / ".pack").mkdir(parents=True)
    victim.mkdir()
    (victim / "tokenizer.json").write_text("precious")
    (out / "tokenizer").symlink_to(victim)
    done = pack(zoo, "--text-tokenizer", demo_zoo.tokenizer)
    assert done.code == 3
    assert "tokenizer: not a directory of the output: got a symbolic link" in done.err
    assert tree(victim) == {"tokenizer.json": b"precious"}


def test_a_tie(tmp_path):
    for number in range(4):
        write_adapter(tmp_path / f"zoo/{number}", number, dtype="bfloat16" if number % 2 else "float32")
    refused(pack(tmp_path / "zoo"), "a tie: 2 of", "--dtype")
    assert not (tmp_path / "out").exists()


def test_out_and_zoo_overlap(zoo):
    for out in (zoo / "out", zoo, zoo.parent):
        refused(here("build", zoo, out), "overlap", "Choose another OUT")


def test_out_is_a_file(zoo):
    (zoo.parent / "out").write_text("mine")
    refused(pack(zoo), "out: the output is not a directory")


def test_strict_commits_nothing(zoo):
    pickle(zoo / "beta/bad")
    done = pack(zoo, "--strict")
    assert done.code == 1
    assert "not committed: --strict" in done.out
    assert "beta/bad" in done.out
    assert not (zoo.parent / "out").exists(), "what the plan knows is not packed first"
    assert pack(zoo).code == 1
    assert (zoo.parent / "out/shardset.json").exists()


def test_strict_commits_nothing_when_a_fault_shows_only_in_packing(zoo):
    tensors = random_pairs(9)
    next(iter(tensors.values()))[0, 0] = float("inf")
    write_adapter(zoo / "beta/bad", 9, tensors=tensors)
    done = pack(zoo, "--strict")
    assert (done.code, (zoo.parent / "out/shardset.json").exists()) == (1, False)
    assert "not committed: --strict" in done.out
    assert pack(zoo).code == 1
    assert (zoo.parent / "out/shardset.json").exists()


def test_the_dry_run_ends_as_the_build_would(zoo):
    assert pack(zoo, "--dry-run").code == 0
    assert pack(zoo).code == 0
    refused(pack(zoo, "--dry-run"), "this set is finished", "--overwrite")
    assert pack(zoo, "--dry-run", "--overwrite").code == 0
    pickle(zoo / "beta/bad")
    assert pack(zoo, "--dry-run", "--overwrite").code == 1


def test_no_such_tokenizer(zoo):
    refused(pack(zoo, "--text-tokenizer", zoo / "none"), "--text-tokenizer: no such directory")


def test_words_of_every_skip_have_no_trace_of_this_machine(zoo):
    """All kinds at once: what is committed names no absolute path."""
    for number, (spoil, _) in enumerate(ONE_BAD):
        spoil(zoo / f"beta/bad_{number}")
    assert pack(zoo).code == 1
    everything = b"\n".join(tree(zoo.parent / "out").values())
    assert str(zoo.parent).encode() not in everything
    assert len(json.loads((zoo.parent / "out/skipped.json").read_text())["skipped"]) == len(ONE_BAD)
