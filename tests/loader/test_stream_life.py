"""Threads, descriptors, memory, and buffers under the user's hands."""

from __future__ import annotations

import gc
import logging
import os
import queue
import subprocess
import sys
import time
import weakref

import pytest
import torch

from llgbm_loader import StreamingLoader
from llgbm_loader.files import ShardFiles
from llgbm_loader.reader_threads import Work
from llgbm_loader.ring import BufferPool
from llgbm_shards.errors import UsageError
from llgbm_shards.shardset import ShardSet
from support.leaks import child_env, descriptors, readers
from support.synthetic import small_layout, write_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]


def test_a_whole_epoch_ends_the_threads(made):
    loader = StreamingLoader(made.path, batch_size=4)
    for index, _ in enumerate(loader):
        assert len(readers()) == 4, index
    assert readers() == []


def test_break_and_exception_end_the_threads(made):
    loader = StreamingLoader(made.path, batch_size=4)
    for _ in loader:
        break
    assert readers() == []
    with pytest.raises(ZeroDivisionError):
        _fail_in_the_loop(loader)
    gc.collect()
    assert readers() == []


def _fail_in_the_loop(loader):
    for _ in loader:
        raise ZeroDivisionError


def test_a_dropped_iterator_ends_the_threads(made):
    iterator = iter(StreamingLoader(made.path, batch_size=4))
    next(iterator)
    assert readers()
    del iterator
    assert readers() == []


def test_close_ends_iterations_under_way(made):
    loader = StreamingLoader(made.path, batch_size=4)
    iterator = iter(loader)
    batch = next(iterator)
    kept = batch["tokens"].clone()
    loader.close()
    loader.close()
    assert readers() == []
    assert torch.equal(batch["tokens"].nan_to_num(), kept.nan_to_num())
    with pytest.raises(UsageError, match="closed"):
        list(iterator)
    with pytest.raises(UsageError, match="closed"):
        iter(loader).__next__()


def test_a_with_statement_closes(made):
    with StreamingLoader(made.path, batch_size=4) as loader:
        iterator = iter(loader)
        next(iterator)
        assert readers()
    assert readers() == []
    with pytest.raises(UsageError, match="closed"):
        next(iterator)


@pytest.mark.parametrize("held", [0, 2])
def test_close_frees_the_buffers_and_those_that_come_back_later(made, monkeypatch, held):
    allocate, buffers = BufferPool._allocate, []

    def watched(pool):
        buffer = allocate(pool)
        buffers.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(BufferPool, "_allocate", watched)
    loader = StreamingLoader(made.path, batch_size=4)
    kept = [batch for batch, _ in zip(loader, range(held), strict=False)]
    if not held:
        for batch in loader:
            del batch
        assert any(buffer() is not None for buffer in buffers)
    loader.close()
    assert sum(buffer() is not None for buffer in buffers) <= held + 1
    kept.clear()
    gc.collect()
    assert not any(buffer() is not None for buffer in buffers)


def test_errors_in_reader_threads_reach_the_consumer(made, monkeypatch):
    def fail(self, assembly, index, reader):
        raise MemoryError("no room")

    monkeypatch.setattr(Work, "_read_row", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(StreamingLoader(made.path, batch_size=4))


def test_errors_while_buffers_are_taken_reach_the_consumer(made, monkeypatch):
    def fail(self, rows, buffer):
        raise MemoryError("no room")

    monkeypatch.setattr("llgbm_loader.batch.BatchPlan.allocate", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(StreamingLoader(made.path, batch_size=4))


@pytest.mark.parametrize("options", [{}, {"frame": "none", "dtype": None}])
def test_tensors_that_are_kept_do_not_change(made, options):
    loader = StreamingLoader(made.path, batch_size=2, prefetch_batches=1, **options)
    kept = []
    for _ in range(2):
        for index, batch in enumerate(loader):
            if index % 3 == 0:
                # In all the ways a user may hold on to memory: the dict, a slice, a numpy array.
                holds = [batch, batch["tokens"][0], batch["tokens"].flatten()[5:], batch["scales"].numpy()]
                hold = holds[index // 3 % 4]
                kept.append((hold, _copy(hold)))
            del batch
    assert len(kept) == 8
    for hold, before in kept:
        assert _equal(hold, before)


def _copy(hold):
    if isinstance(hold, dict):
        return {name: _copy(value) for name, value in hold.items()}
    return hold.clone() if isinstance(hold, torch.Tensor) else hold.copy()


def _equal(hold, copy):
    if isinstance(hold, dict):
        return all(_equal(hold[name], copy[name]) for name in hold)
    if isinstance(hold, torch.Tensor):
        return torch.equal(hold.nan_to_num(), copy.nan_to_num())
    return bool((hold == copy) if isinstance(hold, list) else (hold == copy).all())


def test_an_autograd_graph_keeps_its_buffer(made):
    weight = torch.ones((), requires_grad=True)
    losses, sums = [], []
    for batch in StreamingLoader(made.path, batch_size=2, prefetch_batches=1, zero_std="zeros", frame="none"):
        tokens = batch["tokens"].nan_to_num_()
        sums.append(tokens.sum())
        losses.append((tokens * weight).sum())
        del batch, tokens
    torch.stack(losses).sum().backward()
    assert torch.allclose(weight.grad, torch.stack(sums).sum())


@pytest.mark.parametrize("prefetch", [1, 2, 3])
def test_buffers_are_used_again_and_no_more_than_ahead_and_one(made, prefetch):
    loader = StreamingLoader(made.path, batch_size=2, prefetch_batches=prefetch)
    seen = set()
    for _ in range(5):
        for batch in loader:
            seen.add(batch["tokens"].data_ptr())
            time.sleep(0.001)
        del batch
    assert len(seen) <= prefetch + 1


def test_reading_goes_on_while_the_consumer_works(made, monkeypatch):
    complete, whole = Work._complete, queue.SimpleQueue()

    def completed(self, assembly):
        complete(self, assembly)
        whole.put(len(assembly.lists["keys"]))

    monkeypatch.setattr(Work, "_complete", completed)
    iterator = iter(StreamingLoader(made.path, batch_size=4, prefetch_batches=2))
    next(iterator)
    # The one that was asked for, and two ahead that nobody has asked for yet.
    assert [whole.get(timeout=30) for _ in range(3)] == [4, 4, 4]


def test_few_descriptors_are_open_however_many_shards_there_are(tmp_path):
    made = write_set(tmp_path / "set", 24, shard_samples=1)
    shards = list(ShardSet(made.path).shards.values())
    files, before, byte = ShardFiles(shards), descriptors(), bytearray(1)
    for number in [*range(24), *range(24)]:
        assert files.read(number, [byte], 0) == 0
        assert descriptors() <= before + 16
    files.close()
    assert descriptors() == before


def test_memory_is_flat_over_200_epochs(made):
    loader = StreamingLoader(made.path, batch_size=4)

    def epochs(count):
        for _ in range(count):
            for _ in loader:
                pass
        gc.collect()
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

    start = epochs(20)
    assert epochs(200) - start < 8 << 20


def test_memory_is_bounded_by_the_batches_ahead(tmp_path):
    layout = small_layout(rank=16, chunk=256, modules=4, tokens=64)  # tokens of 4.7 MB in float32
    made = write_set(tmp_path / "set", 32, layout=layout)
    script = f"""
import resource, torch
from llgbm_loader import StreamingLoader
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.ones(1 << 20).sum()
loader = StreamingLoader({str(made.path)!r}, batch_size=8, prefetch_batches=2, fields=["tokens"])
before = peak()
for _ in range(3):
    for batch in loader: pass
print((peak() - before) / (3 * batch["tokens"].nbytes))
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=child_env()
    )
    assert float(out.stdout) < 1.2


def test_stats_and_one_log_line_an_epoch(made, caplog):
    loader = StreamingLoader(made.path, batch_size=5, remainder="pad")
    with caplog.at_level(logging.INFO, "llgbm_loader"):
        for _ in range(2):
            for _ in loader:
                pass
    stats = loader.stats()
    assert (stats.epochs, stats.batches, stats.samples, stats.padding_rows) == (2, 10, 48, 2)
    assert 0 < stats.waited_s <= stats.seconds
    assert 0 < stats.waited_share <= 1
    assert stats.bytes_per_s == pytest.approx(stats.bytes_read / stats.seconds)
    assert stats.samples_per_s == pytest.approx(48 / stats.seconds)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == ["epoch 0: 24 samples", "epoch 1: 24 samples"]
