"""Reader threads that cannot begin, and iterations that several threads end at once."""

from __future__ import annotations

import threading

import pytest

from llgbm_loader import StreamingLoader, reader_threads
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
