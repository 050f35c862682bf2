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

from llgbm_pack.packing.lock import LOCK_NAME, WORKERS_NAME, builder_lock, refuse_locked, take_worker_lock
from llgbm_shards.errors import LockedError, StorageError
from support.commands import wait_until

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from pathlib import Path
from llgbm_pack.packing.lock import builder_lock
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


@pytest.mark.parametrize("junk", [b"", b"\0" * 50, b"[1]", b'{"pid": ', b"[" * 4096])
def test_an_unreadable_name_does_not_matter(tmp_path, junk):
    directory = tmp_path / "out" / ".pack"
    directory.mkdir(parents=True)
    (directory / LOCK_NAME).write_bytes(junk)
    with builder_lock(directory):
        assert text_of(directory)["pid"] == os.getpid()


def _linked(path, victim):
    path.symlink_to(victim)


def _dangling(path, victim):
    path.symlink_to(victim.with_name("absent"))


def _hard_linked(path, victim):
    path.hardlink_to(victim)


def _fifo(path, victim):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("lock", "name"),
    [
        (lambda directory: builder_lock(directory).__enter__(), LOCK_NAME),
        (lambda directory: builder_lock(directory).__enter__(), WORKERS_NAME),
        (refuse_locked, LOCK_NAME),
        (take_worker_lock, WORKERS_NAME),
    ],
    ids=["builder's", "workers', waited for", "looked at", "workers'"],
)
@pytest.mark.parametrize("put", [_linked, _dangling, _hard_linked, _fifo])
@pytest.mark.timeout(10)
def test_what_is_not_the_locks_own_file_is_neither_followed_nor_written(tmp_path, lock, name, put):
    directory = tmp_path / "out" / ".pack"
    directory.mkdir(parents=True)
    (tmp_path / "victim").write_text("precious")
    put(directory / name, tmp_path / "victim")
    with pytest.raises(StorageError, match=rf"{name}: not this program's own file: expected a regular file"):
        lock(directory)
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "lock", [lambda directory: builder_lock(directory).__enter__(), refuse_locked, take_worker_lock]
)
@pytest.mark.parametrize("target", ["foreign", "absent"])
def test_a_pack_directory_that_is_a_link_is_refused(tmp_path, lock, target):
    (tmp_path / "out").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "out" / ".pack").symlink_to(tmp_path / target)
    with pytest.raises(StorageError, match=r"\.pack: not a directory of the output: got a symbolic link"):
        lock(tmp_path / "out" / ".pack")
    assert not list((tmp_path / "foreign").iterdir())
    assert not (tmp_path / "absent").exists()


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
