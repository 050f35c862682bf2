"""Killed, interrupted, edited in between: the end is an unbroken build's set, or a clear refusal."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_pack import executor as executor_module
from llgbm_shards import check
from llgbm_shards.errors import PlanError, StorageError, UsageError
from llgbm_shards.storage import TEMPORARY
from support.commands import group_members, here, started, wait_until
from support.tiny_zoo import MODULES, random_pairs, tree, write_adapter, write_deltas, write_zoo

COUNT = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """zoo, deltas, and the set that an unbroken build gives: a sample a shard."""
    root = tmp_path_factory.mktemp("resume")
    write_deltas(root / "deltas", write_zoo(root / "zoo", COUNT))
    build(options(root, root / "unbroken", workers=1))
    return root


@pytest.fixture
def own(made, tmp_path):
    """A copy of zoo and deltas that a test may edit."""
    for name in ("zoo", "deltas"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def options(root, out, **more):
    return PackOptions(
        **{"zoo": root / "zoo", "out": out, "deltas": root / "deltas", "shard_bytes": 1, **more}
    )


def args(root, out, workers):
    return ["build", root / "zoo", out, "--deltas", root / "deltas", "--shard-bytes", 1, "--workers", workers]


def shards(out):
    return len(list(out.glob("train-*.tar")))


def leftovers(out):
    return [path for path in out.rglob("*") if path.name.startswith(TEMPORARY)]


class Stop(BaseException):
    """Not an error: something from outside, like a signal."""


class StopAfter:
    """A progress that ends the build after so many samples."""

    def __init__(self, samples):
        self._left = samples

    def planned(self, plan, done):
        pass

    def advanced(self, samples, source_bytes):
        if samples >= self._left:
            raise Stop


def broken_off(root, samples=10, **more):
    """An unfinished build of ``root/out`` with some shards done."""
    with pytest.raises(Stop):
        build(options(root, root / "out", workers=1, **more), progress=StopAfter(samples))
    assert 0 < shards(root / "out") < COUNT
    assert not (root / "out" / "shardset.json").exists()
    return root / "out"


def _build_with_workers(root, out):
    build(options(root, out, workers=2))


def kill_the_group(process):
    os.killpg(process.pid, signal.SIGKILL)


def kill_the_builder(process):
    """Its workers are orphans then, and end by themselves."""
    process.kill()
    wait_until(lambda: not group_members(process.pid), timeout_s=10)


def kill_a_command(root, out, moment, kill):
    with started(*args(root, out, workers=2)) as process:
        wait_until(moment, process)
        kill(process)


def kill_a_call(root, out, moment):
    """As above, of a builder that need not import torch first."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llgbm_pack.build_set"])
    process = processes.Process(target=_build_with_workers, args=(root, out))
    process.start()
    wait_until(lambda: moment() or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_ten_kills_at_random_moments(made, tmp_path):
    chance, out = random.Random(11), tmp_path / "out"
    for number in range(10):
        goal = min(shards(out) + chance.randint(0, 3), COUNT - 1)
        moment = lambda goal=goal: shards(out) >= goal and (out / ".pack/plan.json").exists()  # noqa: E731
        if number % 5 == 0:
            kill_a_command(made, out, moment, kill_the_group)
        elif number % 5 == 2:
            kill_a_command(made, out, moment, kill_the_builder)
        else:
            kill_a_call(made, out, moment)
        assert not (out / "shardset.json").exists()
    report = build(options(made, out, workers=2))
    assert 0 < report.resumed <= COUNT
    assert report.packed == COUNT
    assert tree(out) == tree(made / "unbroken")


def _build_once(root, out):
    build(options(root, out, workers=1))


def test_many_kills_from_the_first_write_to_the_last(made, tmp_path):
    """One process each time, ready to build at once; some die in the plan, some in the commit."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llgbm_pack.build_set"])
    chance, kills, ends = random.Random(5), 0, 0
    while kills < 25:
        process = processes.Process(target=_build_once, args=(made, tmp_path / f"{ends}"))
        process.start()
        process.join(chance.uniform(0.02, 0.25))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if (tmp_path / f"{ends}/shardset.json").exists():
            with contextlib.suppress(UsageError):  # a death after the commit leaves a little to remove
                build(options(made, tmp_path / f"{ends}", workers=1))
            assert tree(tmp_path / f"{ends}") == tree(made / "unbroken")
            ends += 1
    if (tmp_path / f"{ends}").exists():
        build(options(made, tmp_path / f"{ends}", workers=1))
        assert tree(tmp_path / f"{ends}") == tree(made / "unbroken")


def test_interrupted(made, tmp_path):
    """Ctrl-C goes to the whole group, as in a terminal."""
    out = tmp_path / "out"
    with started(*args(made, out, workers=2)) as process:
        wait_until(lambda: shards(out) > 1, process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert not group_members(process.pid)
    assert process.returncode == 130
    assert "interrupted; run the same command again to go on" in err
    assert "Traceback" not in err
    assert leftovers(out) == []
    report = build(options(made, out, workers=1))
    assert report.resumed >= 1
    assert tree(out) == tree(made / "unbroken")


def test_a_killed_worker_is_told_and_the_rest_kept(made, tmp_path):
    out = tmp_path / "out"
    with started(*args(made, out, workers=2)) as process:
        wait_until(lambda: shards(out) > 1, process)
        worker = max(pid for pid in group_members(process.pid) if pid != process.pid)
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "a worker process died: got killed by SIGKILL. Finished shards are kept" in err
    assert "Traceback" not in err
    assert leftovers(out) == []
    assert build(options(made, out, workers=1)).packed == COUNT
    assert tree(out) == tree(made / "unbroken")


def test_broken_off_and_resumed(made, own):
    out = broken_off(own)
    done = shards(out)
    report = build(options(own, out, workers=1))
    assert (report.resumed, report.packed) == (done, COUNT)
    assert report.source_bytes < sum(path.stat().st_size for path in (own / "zoo").rglob("*.safetensors"))
    assert tree(out) == tree(made / "unbroken")


def finished_path(out):
    """A checkpoint whose shard is finished."""
    from llgbm_shards.canonical import load_json

    record = next(path for path in sorted((out / ".pack").glob("train-*.json")))
    return load_json(record.read_bytes(), where="", max_bytes=1 << 20)["rows"][0]["checkpoint"]


def edit_weights(root, path):
    write_adapter(root / "zoo" / path, 999)


def edit_weights_in_place(root, path):
    """Same size, same mtime to the second: only the nanoseconds and the bytes differ."""
    file = root / "zoo" / path / "adapter_model.safetensors"
    data, seconds = bytearray(file.read_bytes()), int(file.stat().st_mtime)
    data[-2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(seconds * 10**9 + 1, seconds * 10**9 + 1))


def edit_config(root, path):
    file = root / "zoo" / path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 64'))


def edit_prompts(root, path):
    file = root / "zoo" / path / "prompts.json"
    file.write_text(file.read_text().replace("What is it?", "What was it?"))


def remove_prompts(root, path):
    (root / "zoo" / path / "prompts.json").unlink()


def edit_delta(root, path):
    DeltaCache(root / "deltas").save_delta(f"zoo/{path}", np.ones(24, np.float32))


def name_task(root, path):
    (root / "zoo/manifest.json").write_text(json.dumps({"adapters": [{"path": path, "task": "another"}]}))


@pytest.mark.parametrize(
    "edit",
    [edit_weights, edit_weights_in_place, edit_config, edit_prompts, remove_prompts, edit_delta, name_task],
)
def test_an_edited_input_packs_its_shard_again(made, own, edit):
    out = broken_off(own)
    done = shards(out)
    edit(own, finished_path(out))
    report = build(options(own, out, workers=1))
    assert report.resumed == done - 1
    build(options(own, own / "fresh", workers=1))
    assert tree(out) == tree(own / "fresh") != tree(made / "unbroken")


def test_texts_that_appear_are_an_edit_too(own):
    for file in (own / "zoo").rglob("prompts.json"):
        file.unlink()
    out = broken_off(own)
    path = finished_path(out)
    (own / "zoo" / path / "prompts.json").write_text('{"prompts": ["Now there are texts."]}')
    build(options(own, out, workers=1))
    build(options(own, own / "fresh", workers=1))
    assert tree(out) == tree(own / "fresh")


def test_a_touched_but_equal_input_is_not_packed_again(own):
    out = broken_off(own)
    done = shards(out)
    for file in (own / "zoo").rglob("*"):
        os.utime(file)
    report = build(options(own, out, workers=1))
    assert report.resumed == done


def test_a_mended_checkpoint_is_tried_again(own):
    out, bad = own / "out", own / "zoo/alpha/run_000"
    tensors = random_pairs(0)
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_adapter(bad, 0, tensors=tensors)
    report = build(options(own, out, workers=1, strict=True))
    assert (report.committed, report.packed, report.exit_code) == (False, COUNT - 1, 1)
    write_adapter(bad, 0)
    report = build(options(own, out, workers=1))
    assert (report.committed, report.resumed, report.packed, report.skipped) == (True, COUNT - 1, COUNT, ())
    assert report.notes[0].what == "stale delta: the checkpoint is newer than its delta"


def test_a_layout_that_changed_its_majority_packs_everything_again(tmp_path):
    """The shard of an unedited checkpoint would have another module table than its neighbours."""
    wide, narrow = dict(MODULES), dict(list(MODULES.items())[:1])
    paths = write_zoo(tmp_path / "zoo", 5, modules=narrow)
    write_deltas(tmp_path / "deltas", paths)
    with pytest.raises(Stop):
        build(options(tmp_path, tmp_path / "out", workers=1), progress=StopAfter(4))
    for number in (0, 1, 2):
        write_adapter(tmp_path / "zoo" / paths[number], number, modules=wide)
    report = build(options(tmp_path, tmp_path / "out", workers=1))
    assert report.resumed == 0
    assert check(tmp_path / "out").sound
    build(options(tmp_path, tmp_path / "fresh", workers=1))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard_bytes": 5000}, r"shard bytes 5000 \(was 1\)"),
        ({"seed": 1}, r"seed 1 \(was 0\)"),
        ({"exclude": ("alpha/run_000",)}, r"exclude .*1 checkpoints no longer to pack \(alpha/run_000\)"),
        ({"maps": (("zoo", "zoo"),)}, r"map \['zoo=zoo'\]"),
    ],
)
def test_another_plan_is_refused_in_words(own, change, said):
    out = broken_off(own)
    before = tree(out)
    with pytest.raises(PlanError, match=said) as caught:
        build(options(own, out, workers=1, **change))
    assert caught.value.exit_code == 2
    assert f"delete {out} to begin anew" in str(caught.value)
    assert tree(out) == {**before, ".pack/lock": b""}


def test_a_new_checkpoint_is_refused_in_words(own):
    out = broken_off(own)
    write_adapter(own / "zoo/alpha/run_100", 100)
    DeltaCache(own / "deltas").save_delta("zoo/alpha/run_100", np.ones(24, np.float32))
    with pytest.raises(PlanError, match=r"1 checkpoints more to pack \(alpha/run_100\)"):
        build(options(own, out, workers=1))


def test_another_text_tokenizer_is_refused(demo_zoo, own):
    tokenizer = own / "tokenizer"
    shutil.copytree(demo_zoo.tokenizer, tokenizer)
    out = broken_off(own, text_tokenizer=str(tokenizer))
    config = tokenizer / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 99}))
    with pytest.raises(PlanError, match="another text tokenizer"):
        build(options(own, out, workers=1, text_tokenizer=str(tokenizer)))


def test_a_finished_set_is_refused_and_what_a_late_death_left_is_removed(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made / "unbroken", out)
    (out / ".pack").mkdir()
    (out / ".pack/plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"this set is finished.*--overwrite"):
        build(options(made, out, workers=1))
    assert tree(out) == tree(made / "unbroken")


@pytest.fixture
def old(own):
    """Another, older set at ``own/out``."""
    build(options(own, own / "out", limit=3, workers=1))
    return tree(own / "out")


def test_overwrite_keeps_the_old_set_until_the_end(made, own, old):
    out = own / "out"
    with started(*args(own, out, workers=2), "--overwrite") as process:
        wait_until(lambda: shards(own / ".out.replacement") > 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert tree(out) == old
    assert check(out).sound
    done = here(*args(own, out, workers=1), "--overwrite", "--format", "json")
    assert done.code == 0
    assert done.json["resumed"] >= 1
    assert tree(out) == tree(made / "unbroken")
    assert sorted(path.name for path in own.iterdir()) == ["deltas", "out", "zoo"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite_swaps(made, own, old, exchange, monkeypatch):
    """On a file system without the exchange of two names, by two renames."""
    from llgbm_pack import replace

    if not exchange:
        monkeypatch.setattr(replace, "_exchange", lambda new, out: False)
    build(options(own, own / "out", overwrite=True, workers=1))
    assert tree(own / "out") == tree(made / "unbroken")
    assert sorted(path.name for path in own.iterdir()) == ["deltas", "out", "zoo"]


def test_overwrite_through_a_link_keeps_the_link(made, own, old):
    (own / "link").symlink_to("out")
    build(options(own, own / "link", overwrite=True, workers=1))
    assert (own / "link").is_symlink()
    assert tree(own / "out") == tree(made / "unbroken")


def test_what_an_exchange_left_behind_is_no_beginning(made, own, old):
    """Killed after the swap, before the old set was deleted: it lies where the replacement was."""
    shutil.copytree(own / "out", own / ".out.replacement")
    build(options(own, own / "out", overwrite=True, workers=1))
    assert tree(own / "out") == tree(made / "unbroken")


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_replaced(made, tmp_path, overwrite):
    out = tmp_path / "out"
    (out / "thesis").mkdir(parents=True)
    (out / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"not of a shard set.*got thesis"):
        build(options(made, out, overwrite=overwrite, workers=1))
    assert tree(tmp_path) == {"out/thesis/chapter.tex": b"years of work"}


def test_overwrite_refuses_files_added_to_a_set(own, old):
    (own / "out/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"got notes\.txt"):
        build(options(own, own / "out", overwrite=True, workers=1))


def test_an_input_that_changes_while_the_build_runs_is_no_silent_mix(own):
    class Edit(StopAfter):
        def advanced(self, samples, source_bytes):
            if samples == COUNT:
                edit_weights(own, "alpha/run_000")

    with pytest.raises(StorageError, match=r"changed while the build was running.*again"):
        build(options(own, own / "out", workers=1), progress=Edit(0))
    build(options(own, own / "out", workers=1))
    build(options(own, own / "fresh", workers=1))
    assert tree(own / "out") == tree(own / "fresh")


def test_a_script_without_a_guard_runs_once(made, tmp_path):
    """Worker processes do not import the user's script again."""
    script = tmp_path / "pack_it.py"
    script.write_text(
        "from pathlib import Path\nfrom llgbm_pack import PackOptions, build\nprint('once')\n"
        f"report = build(PackOptions(zoo=Path({str(made / 'zoo')!r}), out=Path('out'), workers=2, shard_bytes=9000))\n"
        "print(report.packed)\n"
    )
    done = subprocess.run(
        [sys.executable, script], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == (f"once\n{COUNT}\n", "")


def test_deaths_in_words():
    words = str(executor_module._death([None, 0, -signal.SIGTERM, -signal.SIGBUS]))
    assert "killed by SIGBUS" in words
    assert "ended with status 3" in str(executor_module._death([3, -signal.SIGTERM]))
