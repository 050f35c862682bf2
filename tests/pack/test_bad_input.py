"""Every kind of bad input: a clear error or a named skip, and nothing lost."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from llgbm_pack import DeltaCache
from llgbm_shards import ShardSet, check
from support.commands import Done, here
from support.tiny_zoo import MODULES, random_pairs, tree, write_adapter, write_deltas, write_zoo

GOOD = 4


@pytest.fixture
def zoo(tmp_path):
    """tmp_path/zoo with four good checkpoints."""
    write_zoo(tmp_path / "zoo", GOOD)
    return tmp_path / "zoo"


def pack(zoo, *more) -> Done:
    return here("build", zoo, zoo.parent / "out", "--workers", 1, "-q", *more)


def refused(done, *said):
    """A usage error in one line a stranger understands, and nothing written."""
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    for words in said:
        assert re.search(words, done.err), done.err


def truncate(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def cut_header(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def empty(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_bytes(b"")


def noise(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 20)


def html(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_text("<!DOCTYPE html><p>404</p>" * 9)


def pickle(bad):
    write_adapter(bad, 9)
    (bad / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, bad / "adapter_model.bin")


def not_lora(bad):
    write_adapter(bad, 9)
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))


def half_a_pair(bad):
    tensors = random_pairs(9)
    del tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    write_adapter(bad, 9, tensors=tensors)


def with_value(value, count):
    def write(bad):
        tensors = random_pairs(9)
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].view(-1)[:count] = value
        write_adapter(bad, 9, tensors=tensors)

    return write


def other_dtype(bad):
    write_adapter(bad, 9, dtype="float32")


def other_rank(bad):
    write_adapter(bad, 9, rank=8)


def other_widths(bad):
    write_adapter(bad, 9, modules={**MODULES, "model.layers.0.self_attn.v_proj": (32, 32)})


def bad_config(bad):
    (write_adapter(bad, 9) / "adapter_config.json").write_text("{")


def bad_prompts(bad):
    (write_adapter(bad, 9) / "prompts.json").write_text('{"prompts": []}')


def config_alone(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").unlink()


def fifo(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").unlink()
    os.mkfifo(bad / "adapter_model.safetensors")


def link_out(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    outside = bad.parents[2] / "outside.safetensors"
    shutil.move(file, outside)
    file.symlink_to(outside)


ONE_BAD = [
    (truncate, r"adapter_model\.safetensors"),
    (cut_header, r"adapter_model\.safetensors"),
    (empty, r"adapter_model\.safetensors"),
    (noise, r"adapter_model\.safetensors"),
    (html, r"adapter_model\.safetensors"),
    (pickle, r"adapter_model\.bin is a pickle, which is never opened"),
    (not_lora, r"peft_type.*IA3"),
    (half_a_pair, r"layers\.0\.self_attn\.v_proj.*lora_B"),
    (with_value(float("nan"), 3), r"layers\.1\.self_attn\.q_proj\.lora_A.*\b3\b"),
    (with_value(float("inf"), 1), r"layers\.1\.self_attn\.q_proj\.lora_A.*\b1\b"),
    (other_dtype, r"expected bfloat16, got float32.*--dtype"),
    (other_rank, r"expected 4, got 8.*--rank 8"),
    (other_widths, r"v_proj expected \(in, out\) \(32, 16\), got \(32, 32\)"),
    (bad_config, r"adapter_config\.json"),
    (bad_prompts, r"prompts\.json"),
    (config_alone, r"adapter_config\.json without adapter_model\.safetensors"),
    (fifo, r"a FIFO, not a regular file"),
    (link_out, r"a link out of the zoo"),
]


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
        (pickled, "delta of another dtype"),
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
    for place in ("one", "two"):
        cache.save_delta(f"{place}/zoo/{PATH}", np.ones(24, np.float32))
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


def test_a_cache_without_a_manifest(zoo, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(pack(zoo, "--deltas", tmp_path / "empty"), "no delta cache", r"manifest\.json")


def test_deltas_of_another_zoo(zoo, tmp_path):
    cache = write_deltas(tmp_path / "cache", ["other/thing"], prefix="elsewhere")
    refused(
        pack(zoo, "--deltas", cache, "--missing-delta", "skip"), "no delta belongs to any checkpoint", "--map"
    )


def test_finished(zoo):
    assert pack(zoo).code == 0
    before = tree(zoo.parent / "out")
    refused(pack(zoo), "out: this set is finished", "--overwrite")
    assert tree(zoo.parent / "out") == before


def test_being_packed_by_another_process(zoo):
    from llgbm_pack.lock import builder_lock

    out = zoo.parent / "out"
    with builder_lock(out / ".pack"):
        done = pack(zoo)
    assert done.code == 3
    assert re.search(rf"being packed by another process: got host \S+, pid {os.getpid()}, since 20", done.err)
    assert [path.name for path in out.iterdir()] == [".pack"]


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
    assert not (zoo.parent / "out/shardset.json").exists()
    assert pack(zoo).code == 1
    assert (zoo.parent / "out/shardset.json").exists()


def test_no_such_tokenizer(zoo):
    refused(pack(zoo, "--text-tokenizer", zoo / "none"), "text tokenizer cannot be loaded")


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 400 KiB."""
    if os.geteuid() != 0:
        pytest.skip("small_disk needs root to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("small_disk: mount is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full(tmp_path, small_disk, workers):
    write_zoo(tmp_path / "zoo", 12)
    ballast, out = small_disk / "ballast", small_disk / "out"
    ballast.write_bytes(bytes(330 << 10))
    args = ("build", tmp_path / "zoo", out, "--shard-bytes", 3000, "--workers", workers, "-q")
    done = here(*args)
    assert done.code == 3
    assert re.search(
        r"no space left on the device: expected \d+ bytes free, got \d+ bytes free\. Free some", done.err
    )
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
    kept = len(list(out.glob("*.tar")))
    assert kept >= 1
    ballast.unlink()
    done = here(*args, "--format", "json")
    assert (done.code, done.json["packed"]) == (0, 12)
    assert done.json["resumed"] >= 1
    assert here("build", tmp_path / "zoo", tmp_path / "out", *args[3:]).code == 0
    assert tree(out) == tree(tmp_path / "out")


def test_disk_full_from_the_start(tmp_path, small_disk):
    write_zoo(tmp_path / "zoo", 2)
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(1 << 20))
    done = here("build", tmp_path / "zoo", small_disk / "out", "--workers", 1, "-q")
    assert done.code == 3
    assert "no space left on the device" in done.err


def test_words_of_every_skip_have_no_trace_of_this_machine(zoo):
    """All kinds at once: what is committed names no absolute path."""
    for number, (spoil, _) in enumerate(ONE_BAD):
        spoil(zoo / f"beta/bad_{number}")
    assert pack(zoo).code == 1
    everything = b"\n".join(tree(zoo.parent / "out").values())
    assert str(zoo.parent).encode() not in everything
    assert len(json.loads((zoo.parent / "out/skipped.json").read_text())["skipped"]) == len(ONE_BAD)
