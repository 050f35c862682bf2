"""One builder per output: real processes, real deaths."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest

from llgbm_pack.lock import LOCK_NAME, builder_lock, refuse_locked, take_worker_lock
from llgbm_shards.errors import LockedError, StorageError
from support.commands import wait_until

HOLD = """
import sys, time
from pathlib import Path
from llgbm_pack.lock import builder_lock
with builder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A second process that holds the lock of tmp_path/out/.pack."""
    directory = tmp_path / "out" / ".pack"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, directory], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process, directory
        process.kill()


def text_of(directory):
    return json.loads((directory / LOCK_NAME).read_text() or "{}")


@pytest.mark.parametrize("lock", [lambda directory: builder_lock(directory).__enter__(), refuse_locked])
def test_a_second_process_is_named(holder, lock):
    process, directory = holder
    with pytest.raises(LockedError, match=f"pid {process.pid}, since 20..-..-..T") as caught:
        lock(directory)
    assert f"host {socket.gethostname()}" in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_lock_of_a_dead_process_is_taken_over(holder):
    process, directory = holder
    process.kill()
    process.wait()
    assert text_of(directory)["pid"] == process.pid  # it left its name behind
    refuse_locked(directory)
    with builder_lock(directory):
        assert text_of(directory)["pid"] == os.getpid()


def test_of_a_dead_process_of_another_host_nothing_is_known(tmp_path):
    directory = tmp_path / "out" / ".pack"
    directory.mkdir(parents=True)
    (directory / LOCK_NAME).write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2026-01-01"}))
    with (
        pytest.raises(LockedError, match=r"host elsewhere, pid 7, since 2026-01-01.*delete \.pack/lock"),
        builder_lock(directory),
    ):
        pass
    assert text_of(directory)["host"] == "elsewhere"


@pytest.mark.parametrize("fault", [None, ValueError, KeyboardInterrupt])
def test_any_end_but_death_takes_the_name_out(tmp_path, fault):
    """Otherwise another host would refuse to resume what was stopped in good order here."""
    directory = tmp_path / "out" / ".pack"
    try:
        with builder_lock(directory):
            if fault:
                raise fault
    except (ValueError, KeyboardInterrupt):
        pass
    assert (directory / LOCK_NAME).read_bytes() == b""


@pytest.mark.parametrize("junk", [b"", b"\0" * 50, b"[1]", b'{"pid": '])
def test_an_unreadable_name_does_not_matter(tmp_path, junk):
    directory = tmp_path / "out" / ".pack"
    directory.mkdir(parents=True)
    (directory / LOCK_NAME).write_bytes(junk)
    with builder_lock(directory):
        assert text_of(directory)["pid"] == os.getpid()


def _work(directory, ready):
    take_worker_lock(directory)
    ready.set()
    signal.pause()


def test_a_new_builder_waits_until_orphaned_workers_are_gone(tmp_path):
    directory = tmp_path / "out" / ".pack"
    directory.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    ready, held = spawn.Event(), spawn.Event()
    orphan = spawn.Process(target=_work, args=(directory, ready))
    orphan.start()
    assert ready.wait(30)
    builder = spawn.Process(target=_build, args=(directory, held))
    builder.start()
    wait_until(lambda: (directory / LOCK_NAME).exists() and text_of(directory))
    assert not held.wait(0.3)
    orphan.kill()
    assert held.wait(30)
    builder.join()


def _build(directory, held):
    with builder_lock(directory):
        held.set()


def _race(directory, start, inside, wins):
    """One try; a winner stays in long enough for every loser to try."""
    start.wait()
    try:
        with builder_lock(directory):
            with inside.get_lock():
                inside.value += 1
                alone = inside.value == 1
            wins.put("alone" if alone else "together")
            start.wait()
            with inside.get_lock():
                inside.value -= 1
    except LockedError:
        wins.put("refused")
        start.wait()


def test_twenty_races_one_wins(tmp_path):
    fork = multiprocessing.get_context("fork")
    for number in range(20):
        directory = tmp_path / f"{number}" / ".pack"
        start, inside, wins = fork.Barrier(2), fork.Value("i"), fork.SimpleQueue()
        racers = [fork.Process(target=_race, args=(directory, start, inside, wins)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(30)
        assert sorted([wins.get(), wins.get()]) == ["alone", "refused"], number


@pytest.mark.parametrize("name", ["lock", "workers"])
@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_link_is_not_written_through(tmp_path, name, target):
    """What it leads to was emptied once."""
    (tmp_path / ".pack").mkdir()
    (tmp_path / ".pack" / name).symlink_to(tmp_path / "victim")
    if target == "file":
        (tmp_path / "victim").write_text("precious")
    with (
        pytest.raises(StorageError, match="a link stands in the place of a lock"),
        builder_lock(tmp_path / ".pack"),
    ):
        pass
    assert (tmp_path / "victim").exists() == (target == "file")
    assert target == "nothing" or (tmp_path / "victim").read_text() == "precious"


def test_a_link_for_the_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".pack").symlink_to(tmp_path / "elsewhere")
    for look in (refuse_locked, lambda directory: builder_lock(directory).__enter__()):
        with pytest.raises(StorageError, match="a link stands in the place of the directory"):
            look(tmp_path / ".pack")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["lock", "workers"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    (tmp_path / ".pack").mkdir()
    os.mkfifo(tmp_path / ".pack" / name)
    with pytest.raises(StorageError, match="not a regular file"), builder_lock(tmp_path / ".pack"):
        pass


def test_a_hostile_name_of_a_holder_does_not_matter(tmp_path):
    (tmp_path / ".pack").mkdir()
    (tmp_path / ".pack" / "lock").write_text("[" * 4096)
    with builder_lock(tmp_path / ".pack"):
        assert "pid" in (tmp_path / ".pack" / "lock").read_text()
