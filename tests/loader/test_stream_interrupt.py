"""Ends from outside: Ctrl-C, exit, close() at any moment; other processes."""

from __future__ import annotations

import collections
import copy
import gc
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from llgbm_loader import StreamingLoader
from llgbm_loader.reader_threads import Work
from llgbm_loader.stream_source import StreamSource
from llgbm_shards.errors import UsageError
from support.commands import wait_until
from support.leaks import child_env, readers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]


def test_an_interpreter_that_exits_amid_an_iteration_does_not_hang(made):
    script = f"""
from llgbm_loader import StreamingLoader
iterator = iter(StreamingLoader({str(made.path)!r}, batch_size=2, prefetch_batches=8))
held = [next(iterator)["tokens"] for _ in range(2)]
"""
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", script], timeout=60, capture_output=True, text=True, env=child_env()
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_the_program(made):
    script = f"""
import sys, time
from llgbm_loader import StreamingLoader
loader = StreamingLoader({str(made.path)!r}, batch_size=2)
print("ready", flush=True)
while True:
    for batch in loader: pass
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_env(),
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode in (-signal.SIGINT, 130)
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("started", [False, True], ids=["before a start", "after a start"])
def test_ctrl_c_amid_the_starts_of_the_readers(made, monkeypatch, started):
    start, names = threading.Thread.start, []

    def interrupted(thread):
        if not thread.name.startswith("llgbm-reader"):
            return start(thread)
        names.append(thread.name)
        if len(names) < 2 or started:
            start(thread)
        if len(names) == 2:
            raise KeyboardInterrupt
        return None

    loader = StreamingLoader(made.path, batch_size=2, readers=3)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    gc.collect()
    loader.close()
    monkeypatch.undo()
    wait_until(lambda: not readers())
    assert len(list(StreamingLoader(made.path, batch_size=2))) == 12


def test_ctrl_c_at_any_moment_neither_hangs_nor_loses_buffers(made):
    script = f"""
import faulthandler, gc, random, signal, threading, time
from llgbm_loader import StreamingLoader
def readers(): return [t for t in threading.enumerate() if t.name.startswith("llgbm-reader") and t.is_alive()]
signal.signal(signal.SIGALRM, signal.default_int_handler)
faulthandler.dump_traceback_later(50, exit=True)
loader = StreamingLoader({str(made.path)!r}, batch_size=1, prefetch_batches=1, readers=2, seed=1)
interrupted, draw = 0, random.Random(0)
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0005, 0.02))
        for batch in loader:
            del batch
        time.sleep(0.03)
    except KeyboardInterrupt:
        interrupted += 1
gc.collect()
end = time.monotonic() + 20
while readers() and time.monotonic() < end:
    time.sleep(0.01)
loader.set_epoch(0)
print(interrupted, len(readers()), sum(len(batch["keys"]) for batch in loader))
"""
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", script], timeout=90, capture_output=True, text=True, env=child_env()
    )
    assert done.returncode == 0, done.stderr
    interrupted, threads, samples = map(int, done.stdout.split())
    assert (threads, samples) == (0, 24)
    assert interrupted > 250


def test_a_forked_child_is_told_that_the_iterator_is_not_its_own(made):
    script = f"""
import os, signal
from llgbm_loader import StreamingLoader
loader = StreamingLoader({str(made.path)!r}, batch_size=2)
iterator = iter(loader)
next(iterator)
if not (child := os.fork()):
    signal.alarm(20)
    for _ in range(12):
        next(iterator)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), len(list(iterator)))
"""
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", script], timeout=60, capture_output=True, text=True, env=child_env()
    )
    assert done.stdout.split() == ["1", "11"], done.stderr
    assert "UsageError: the iterator is of another process" in done.stderr


def test_inside_a_dataloader_worker_it_raises(made):
    loader = StreamingLoader(made.path, batch_size=4)
    batches = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=0)
    assert len(list(batches)) == 6
    workers = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=1)
    with pytest.raises(UsageError, match=r"DataLoader worker.*ShardDataset"):
        list(workers)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy])
def test_a_copy_is_refused(made, duplicate):  # pickled: as for a worker that is spawned
    loader = StreamingLoader(made.path, batch_size=4)
    next(iter(loader))
    for it in (loader, loader.compose()):
        with pytest.raises(UsageError, match="ShardDataset"):
            duplicate(it)


@pytest.mark.parametrize("popped", [False, True], ids=["before the pop", "after the pop"])
def test_close_amid_next(made, monkeypatch, popped):
    class Ahead(collections.deque):
        """As a signal handler or another thread may close at any moment."""

        def popleft(self):
            item = super().popleft() if popped else None
            loader.close()
            return item or super().popleft()

    monkeypatch.setattr("llgbm_loader.feed.deque", Ahead)
    monkeypatch.setattr(Work, "_do", lambda self, assembly, index, reader: None)  # no batch is ever whole
    loader = StreamingLoader(made.path, batch_size=4)
    with pytest.raises(UsageError, match="closed"):
        next(iter(loader))


def test_close_amid_the_start_of_an_iteration(made, monkeypatch):
    loader = StreamingLoader(made.path, batch_size=4)
    order = StreamSource._order
    monkeypatch.setattr(StreamSource, "_order", lambda *args: loader.close() or order(*args))
    with pytest.raises(UsageError, match="closed"):
        next(iter(loader))


def test_close_frees_a_consumer_that_waits_in_another_thread(made, monkeypatch):
    held = threading.Event()
    plain = Work._read_row

    def slow(self, assembly, index, reader):
        held.set()
        time.sleep(0.3)
        plain(self, assembly, index, reader)

    monkeypatch.setattr(Work, "_read_row", slow)
    loader, caught = StreamingLoader(made.path, batch_size=24, readers=1), []

    def consume():
        try:
            list(loader)
        except UsageError as error:
            caught.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert held.wait(10)
    loader.close()
    consumer.join(10)
    assert not consumer.is_alive()
    assert "closed" in caught[0]
