"""The source stage of a streaming pipeline: epochs into batches, counted, with the state that a resume needs."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from llgbm_loader.batch import BatchPlan
from llgbm_loader.device import AcceleratorOps, SideStream
from llgbm_loader.feed import Feed, loader_closed
from llgbm_loader.options import ReadOptions, StreamOptions
from llgbm_loader.order import PADDING_ROW, Slices, epoch_order
from llgbm_loader.ranks import resolve_ranks
from llgbm_loader.reader_threads import Batch, FeedOptions
from llgbm_loader.ring import BufferPool
from llgbm_loader.state import Identity, StreamState
from llgbm_loader.stats import Counter, LoaderStats, log_epoch
from llgbm_shards.errors import MEND, DamageError, UsageError

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection


class StreamSource:
    """The source stage: each call is one iteration over what is left of the current epoch.

    ``ops`` is the way to the device; None for the CPU.
    """

    def __init__(
        self, selection: Selection, read: ReadOptions, stream: StreamOptions, ops: AcceleratorOps | None
    ) -> None:
        rank, world_size = resolve_ranks(stream.rank, stream.world_size)
        self.selection, self._read, self._stream = selection, read, stream
        self._slices = Slices(
            samples=len(selection),
            position=0,
            batch_size=stream.batch_size,
            rank=rank,
            world_size=world_size,
            remainder=stream.remainder,
        )
        pinned = ops is not None and ops.pinned
        self._plan = BatchPlan.of(selection, read, on_device=ops is not None, pinned=pinned)
        _refuse_no_batch(self._slices)
        held = stream.prefetch_batches + 1
        self._plan.refuse_too_large(stream.batch_size, held)
        self._side = SideStream(ops) if ops is not None else None
        nbytes = self._plan.buffer_bytes(stream.batch_size)
        self._pool = BufferPool(nbytes, capacity=held, pinned=pinned) if nbytes else None
        self.state = StreamState(_identity(selection, read, stream))
        self._counter = Counter()
        # By id; no WeakSet, which another thread may not change while it is looked through.
        self._feeds: dict[int, weakref.ref[Feed]] = {}
        # By sample, not by epoch: one that was left early, resumed, or shared among ranks has not read them all.
        self._verified = np.zeros(len(selection), np.bool_) if read.verify == "first-epoch" else None
        self._closed = False

    def __len__(self) -> int:
        return len(self._slices)

    def __call__(self) -> Iterator[Batch]:
        """Begin an iteration; UsageError where the loader is closed, or in a DataLoader's worker."""
        if self._closed:
            raise loader_closed()
        if torch.utils.data.get_worker_info() is not None:
            raise _elsewhere()
        return self._iterate()

    def __reduce__(self) -> NoReturn:
        """Threads, buffers and a position go to no other process, nor into a deep copy."""
        raise _elsewhere()

    def _iterate(self) -> Iterator[Batch]:
        iteration, start = self.state.begin()
        slices = dataclasses.replace(self._slices, position=start.position)
        order = self._order(start.epoch)
        before = self._counter.snapshot()
        feed = Feed(
            self._plan,
            self._feed_options(start.epoch),
            len(slices),
            lambda batch: slices.rows(order, batch),
            self._pool,
            self._side,
        )
        self._feeds[id(feed)] = weakref.ref(feed)
        try:
            if self._closed:  # meanwhile, by another thread that did not see this feed
                feed.close()
            clock = time.perf_counter()
            if not len(slices):
                self._finish(iteration, start.epoch, before)
            for index in range(len(slices)):
                batch = self._receive(feed)
                self.state.received(iteration, slices.position_after(index + 1))
                clock = self._tick(clock)
                # Now, not after the loop: a consumer that knows the number of batches never asks for one more.
                if index + 1 == len(slices):
                    self._finish(iteration, start.epoch, before)
                # Popped: this frame must hold no tensor while the consumer works, or its buffer is never free.
                yield batch.pop()
                clock = self._tick(clock)
        finally:
            feed.close()
            # Not left to the set: it would do so in a callback in Python, where Ctrl-C is swallowed.
            del self._feeds[id(feed)]

    def _finish(self, iteration: int, epoch: int, before: LoaderStats) -> None:
        self.state.finished(iteration)
        self._counter.epochs += 1
        log_epoch(epoch, before, self._counter.snapshot())

    def _receive(self, feed: Feed) -> list[Batch]:
        """The next batch, counted, as the only item of a list."""
        assembly = feed.next()
        padding = int((assembly.numbers == PADDING_ROW).sum())
        damage = [assembly.damage[row] for row in sorted(assembly.damage)]
        self._counter.waited_s += feed.waited_s
        self._counter.note(damage)
        if damage and len(self._counter.damage) > self._stream.max_bad_samples:
            raise _too_many(len(self._counter.damage), self._stream.max_bad_samples, damage[-1])
        rows = len(assembly.numbers)
        self._counter.add(rows=rows, padding=padding, invalid=len(damage), nbytes=assembly.nbytes)
        return [{**self._plan.present(assembly.batch), **assembly.lists}]

    def _tick(self, clock: float) -> float:
        now = time.perf_counter()
        self._counter.seconds += now - clock
        return now

    def _order(self, epoch: int) -> NDArray[np.int64]:
        by_shard = self._stream.shuffle == "shards"
        return epoch_order(
            self._read.seed,
            epoch,
            len(self.selection),
            shuffle=bool(self._stream.shuffle),
            groups=self.selection.shard if by_shard else None,
        )

    def _feed_options(self, epoch: int) -> FeedOptions:
        return FeedOptions(
            epoch=epoch,
            verify=self._read.verify != "off",
            verified=self._verified,
            readers=self._stream.readers,
            ahead=self._stream.prefetch_batches,
            skip_damage=self._stream.on_bad_sample == "skip",
        )

    def stats(self) -> LoaderStats:
        """The figures by now."""
        return self._counter.snapshot()

    def close(self) -> None:
        """End all iterations, free the buffers."""
        self._closed = True
        for feed in [ref() for ref in list(self._feeds.values())]:
            if feed is not None:
                feed.close()
        if self._pool is not None:
            self._pool.close()
        if self._side is not None:
            self._side.close()


def _refuse_no_batch(slices: Slices) -> None:
    """An epoch of nothing would train through all epochs and say nothing."""
    if not len(slices):
        raise UsageError(
            "an epoch has no batch",
            expected=f"batch_size x world_size <= {slices.samples} samples",
            got=f"batch_size {slices.batch_size} x world_size {slices.world_size}",
            do='Take a smaller batch_size, or remainder="pad".',
        )


def _identity(selection: Selection, read: ReadOptions, stream: StreamOptions) -> Identity:
    return Identity(
        sets=selection.digests,
        overlays=selection.overlays,
        split=selection.split,
        filters=selection.filters,
        seed=read.seed,
        shuffle=stream.shuffle,
        samples=len(selection),
    )


def _elsewhere() -> UsageError:
    return UsageError(
        "a StreamingLoader cannot be copied to another process; inside a DataLoader worker it would repeat every batch",
        expected="num_workers=0",
        do="Iterate it directly: it reads in threads of its own. Or use ShardDataset with a sampler.",
    )


def _too_many(count: int, limit: int, last: DamageError) -> DamageError:
    return DamageError(
        f"{last.what}; too many damaged samples",
        shard=last.shard,
        key=last.key,
        member=last.member,
        expected=f"at most {limit} (max_bad_samples)",
        got=f"{count}, this one the last",
        do=MEND,
    )
