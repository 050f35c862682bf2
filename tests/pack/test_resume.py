"""Killed or interrupted and run again: the end is an unbroken build's set."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from llgbm_pack import build
from llgbm_pack.packing import pool as executor_module
from llgbm_shards.errors import UsageError
from support.commands import group_members, started, wait_until
from support.tiny_zoo import tree
from support.unfinished import COUNT, args, broken_off, leftovers, options, shards

pytestmark = pytest.mark.slow


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
    processes.set_forkserver_preload(["llgbm_pack.packing.build"])
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
    processes.set_forkserver_preload(["llgbm_pack.packing.build"])
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
        wait_until(lambda: list(out.glob(".pack/train-*.json")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        wait_until(lambda: not group_members(process.pid), timeout_s=10)
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


def test_a_finished_set_is_refused_and_what_a_late_death_left_is_removed(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made / "unbroken", out)
    (out / ".pack").mkdir()
    (out / ".pack/plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"this set is finished.*--overwrite"):
        build(options(made, out, workers=1))
    assert tree(out) == tree(made / "unbroken")


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
