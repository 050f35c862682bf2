"""Reader threads that cannot begin, and iterations that several threads end at once."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from llgbm_loader import StreamingLoader, reader_threads
from llgbm_loader.batch import BatchPlan
from llgbm_loader.ring import BufferPool
from llgbm_shards import ShardSet
from support.fake_device import FakeOps
from support.synthetic import write_set


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", 24, shard_samples=4)


def test_a_reader_that_cannot_be_made_is_told(made, monkeypatch):
    def fail(*args):
        raise MemoryError("no room for a reader")

    monkeypatch.setattr(reader_threads, "SampleReader", fail)
    with pytest.raises(MemoryError, match="no room for a reader"):
        next(iter(StreamingLoader(made.path, batch_size=4)))


def test_what_several_threads_close_is_closed(made, monkeypatch):
    """Each looks for tasks that are left while the others take them away."""
    errors = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: errors.append(hook.exc_value))
    for _ in range(100):
        loader = StreamingLoader(made.path, batch_size=1, prefetch_batches=8, readers=1)
        iterator = iter(loader)
        next(iterator)
        closers = [threading.Thread(target=loader.close) for _ in range(3)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
    assert errors == []


@pytest.mark.parametrize("device", [False, True])
def test_damaged_batches_let_go_of_their_buffers_without_the_collector(made, monkeypatch, device):
    opened = ShardSet(made.path)
    for key in opened.keys:
        body = opened.extents(key)[0]
        with (made.path / body.shard).open("r+b") as file:
            file.seek(body.offset)
            file.write(b"damaged!")
    if device:
        monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: FakeOps())
    allocate, fresh = BufferPool._allocate, []
    monkeypatch.setattr(BufferPool, "_allocate", lambda pool: fresh.append(1) or allocate(pool))
    loader = StreamingLoader(
        made.path, batch_size=2, readers=2, prefetch_batches=2, on_bad_sample="skip", frame="none"
    )
    gc.disable()
    try:
        batches = in_time(lambda: sum(1 for _ in loader), loader)
    finally:
        gc.enable()
    assert batches == 12
    assert len(fresh) <= 4


@pytest.mark.parametrize("where", [(BufferPool, "_allocate"), (BatchPlan, "allocate")])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_memory_that_is_short_is_told_and_waited_for_by_nobody(made, monkeypatch, where, failing):
    plain, calls = getattr(*where), []

    def short(self, *args):
        calls.append(1)
        if len(calls) == failing:
            time.sleep(0.05)  # meanwhile another reader comes to the same batch
            raise MemoryError("short")
        return plain(self, *args)

    monkeypatch.setattr(*where, short)
    loader = StreamingLoader(made.path, batch_size=4, readers=4, prefetch_batches=2)
    with pytest.raises(MemoryError, match="short"):
        in_time(lambda: list(loader), loader)


def in_time(work, loader):
    """The result of what must not hang; a watchdog closes the loader."""
    watchdog = threading.Timer(60, loader.close)
    watchdog.start()
    try:
        return work()
    finally:
        watchdog.cancel()
