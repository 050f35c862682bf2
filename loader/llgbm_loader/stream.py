"""StreamingLoader: exact, elastic batches as a webdataset pipeline with one source stage."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray

from llgbm_loader.batch import BatchPlan
from llgbm_loader.device import DeviceOps, SideStream, device_ops
from llgbm_loader.feed import Batch, Feed, FeedOptions
from llgbm_loader.options import Filters, Paths, ReadOptions, SelectOptions, StreamOptions
from llgbm_loader.order import PADDING_ROW, Slices, epoch_order
from llgbm_loader.ranks import resolve_ranks
from llgbm_loader.ring import BufferPool
from llgbm_loader.state import Identity, StreamState
from llgbm_loader.stats import Counter, LoaderStats, log_epoch
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.layout import Layout

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection


class StreamSource:
    """The source stage: each call is one iteration over what is left of the current epoch.

    Args:
        selection: The chosen samples.
        read: What a sample looks like.
        stream: How samples become batches.
        ops: Way to the device; None for the CPU.
    """

    def __init__(
        self, selection: Selection, read: ReadOptions, stream: StreamOptions, ops: DeviceOps | None
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
        self._side = SideStream(ops) if ops is not None else None
        nbytes = self._plan.buffer_bytes(stream.batch_size)
        capacity = stream.prefetch_batches + 1
        self._pool = BufferPool(nbytes, capacity=capacity, pinned=pinned) if nbytes else None
        self.state = StreamState(_identity(selection, read, stream))
        self._counter = Counter()
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        self._verified_epoch: int | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._slices)

    def __call__(self) -> Iterator[Batch]:
        """Begin an iteration.

        Raises:
            UsageError: The loader is closed, or this is a DataLoader's worker.
        """
        if self._closed:
            raise UsageError("the loader is closed", do="Make a new one.")
        if torch.utils.data.get_worker_info() is not None:
            raise UsageError(
                "a StreamingLoader inside a DataLoader worker would repeat every batch",
                expected="num_workers=0",
                do="Iterate it directly: it reads in threads of its own. Or use ShardDataset with a sampler.",
            )
        return self._iterate()

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
        self._feeds.add(feed)
        try:
            clock = time.perf_counter()
            for index in range(len(slices)):
                batch = self._receive(feed)
                self.state.received(iteration, slices.position_after(index + 1))
                clock = self._tick(clock)
                # Popped: this frame must hold no tensor while the consumer works, or its buffer is never free.
                yield batch.pop()
                clock = self._tick(clock)
            self.state.finished(iteration)
            self._counter.epochs += 1
            log_epoch(start.epoch, before, self._counter.snapshot())
        finally:
            feed.close()

    def _receive(self, feed: Feed) -> list[Batch]:
        """The next batch, counted, as the only item of a list."""
        assembly = feed.next()
        padding = int((assembly.numbers == PADDING_ROW).sum())
        damage = [assembly.damage[row] for row in sorted(assembly.damage)]
        self._counter.waited_s += feed.waited_s
        self._counter.add(rows=len(assembly.numbers), padding=padding, damage=damage, nbytes=assembly.nbytes)
        if len(self._counter.damage) > self._stream.max_bad_samples:
            raise _too_many(self._counter.damage, self._stream.max_bad_samples, damage[-1])
        return [{**assembly.batch, "keys": assembly.keys}]

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
        if self._verified_epoch is None:
            self._verified_epoch = epoch
        first = epoch == self._verified_epoch
        return FeedOptions(
            epoch=epoch,
            verify=self._read.verify == "full" or (self._read.verify == "first-epoch" and first),
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
        for feed in list(self._feeds):
            feed.close()
        if self._pool is not None:
            self._pool.clear()


class StreamingLoader(webdataset.DataPipeline):  # type: ignore[misc]  # webdataset has no types
    """Batches of a shard set: the same number on every rank, each sample at most once an epoch.

    Iterating gives what is left of the current epoch; a whole epoch moves on to the next. Stages can be composed
    as with any ``webdataset.DataPipeline``; all pipelines composed of a loader share its state.

    Batches are dicts: tokens (B,N,H,W), or (B,N,r,chunk) with ``frame="none"``; scales (B,N,2) float32;
    condition_ids and attention_mask (B,L), or (B,K,L), int64; delta (B,hidden) float32; has_delta (B,) bool;
    valid (B,) bool; keys, a list of str, empty where a row only fills up the batch.

    Args:
        path: A set's directory, or several, which are taken as one.
        split: Samples of this split; None for all.
        batch_size: Rows of a batch on one rank.
        device: Where the tensors go.
        seed: Seed of the order and of the draws.
        shuffle: True: a full permutation; False: sample-number order; ``shards``: shards shuffled, and samples
            within each, so that neighbours in a store stay together.
        fields: Some of ``tokens``, ``scales``, ``condition``, ``delta``; None for all the set has. Only their bytes
            are read.
        filters: Conditions on index columns in pyarrow's form, e.g. ``[("task", "in", ["arc_e"])]``.
        frame: ``dnd``, ``fp32``, or ``none`` for the bare body.
        zero_std: What pieces of zero std show: ``nan`` or ``zeros``.
        dtype: dtype of the tokens; None for the stored one.
        form: ``prompt``, ``answer``, ``prompt_answer``; or ``mix``: prompt_answer with probability ``mix``, else prompt.
        mix: See ``form``; drawn anew for each sample and epoch.
        num_texts: None takes the first text of a sample; K draws K without replacement, anew each epoch.
        max_text_length: Ids of a condition at most.
        padding: ``max_length``, or ``longest`` of the batch.
        rank: This rank; None asks torch.distributed, then RANK.
        world_size: Number of ranks; None asks likewise.
        remainder: ``drop`` leaves out an incomplete last batch, ``pad`` fills it up with rows that are not valid.
        on_bad_sample: ``raise``, or ``skip``: a damaged sample becomes a row of zeros that is not valid.
        max_bad_samples: Under ``skip``, raise after all beyond this many.
        readers: Reader threads.
        prefetch_batches: Batches read ahead; memory is that of these and one more.
        verify: ``full``: the digest of all that is read; ``first-epoch``; ``off``.
        expect_digest: Digest that the set must have; one for each of several sets.

    Raises:
        UsageError: An option cannot be used, or not with this set; no sample is chosen.
        DamageError: A set is unfinished or damaged.
        StorageError: A set cannot be read.
    """

    def __init__(
        self,
        path: Paths,
        *,
        split: str | None = "train",
        batch_size: int = 8,
        device: str | torch.device = "cpu",
        seed: int = 0,
        shuffle: bool | str = True,
        fields: Sequence[str] | None = None,
        filters: Filters | None = None,
        frame: str = "dnd",
        zero_std: str = "nan",
        dtype: torch.dtype | None = torch.float32,
        form: str = "prompt",
        mix: float = 0.2,
        num_texts: int | None = None,
        max_text_length: int = 512,
        padding: str = "max_length",
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "drop",
        on_bad_sample: str = "raise",
        max_bad_samples: int = 100,
        readers: int = 4,
        prefetch_batches: int = 2,
        verify: str = "full",
        expect_digest: str | Sequence[str] | None = None,
    ) -> None:
        read = ReadOptions(
            fields=None if fields is None else tuple(fields),
            frame=frame,
            zero_std=zero_std,
            dtype=dtype,
            form=form,
            mix=mix,
            num_texts=num_texts,
            max_text_length=max_text_length,
            padding=padding,
            verify=verify,
            seed=seed,
        )
        stream = StreamOptions(
            batch_size=batch_size,
            device=torch.device(device),
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            remainder=remainder,
            on_bad_sample=on_bad_sample,
            max_bad_samples=max_bad_samples,
            readers=readers,
            prefetch_batches=prefetch_batches,
        )
        # Imported here: pyarrow takes half of the time that importing the loader may take.
        from llgbm_loader.selection import select  # noqa: PLC0415

        selection = select(SelectOptions.of(path, split, filters, expect_digest), read.fields)
        self._source = StreamSource(selection, read, stream, device_ops(stream.device))
        super().__init__(self._source)

    def __len__(self) -> int:
        """Batches of a whole epoch on one rank; equal on all ranks."""
        return len(self._source)

    @property
    def layout(self) -> Layout:
        """Layout of the bodies: dtype, rank, chunk, token order, module table."""
        return self._source.selection.common.layout

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. A loaded position within that very epoch stays."""
        self._source.state.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What the consumer has received: small, JSON, good on any world size and batch size."""
        return self._source.state.to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved state stands.

        Raises:
            UsageError: It is of another set, split, filter, seed or shuffle; says which.
        """
        self._source.state.load_json(state)

    def stats(self) -> LoaderStats:
        """Samples, bytes, rates, share of the time the consumer waited, invalid rows."""
        return self._source.stats()

    def close(self) -> None:
        """End all iterations and free the buffers; tensors that were handed out stay as they are."""
        self._source.close()


def _identity(selection: Selection, read: ReadOptions, stream: StreamOptions) -> Identity:
    return Identity(
        sets=selection.digests,
        split=selection.split,
        filters=selection.filters,
        seed=read.seed,
        shuffle=stream.shuffle,
        samples=len(selection),
    )


def _too_many(damage: list[str], limit: int, last: DamageError) -> DamageError:
    return DamageError(
        "too many damaged samples",
        shard=last.shard,
        key=last.key,
        member=last.member,
        expected=f"at most {limit}",
        got=f"{len(damage)}",
        do="Run `llgbm-pack check`.",
    )
