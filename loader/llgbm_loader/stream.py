"""StreamingLoader: exact, elastic batches as a webdataset pipeline with one source stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import webdataset

from llgbm_loader.device import device_ops
from llgbm_loader.options import (
    Filters,
    Overlays,
    Paths,
    ReadOptions,
    SelectOptions,
    StreamOptions,
    from_arguments,
)
from llgbm_loader.stats import LoaderStats
from llgbm_loader.stream_source import StreamSource
from llgbm_shards.arguments import whole_number
from llgbm_shards.layout import Layout


class StreamingLoader(webdataset.DataPipeline):  # type: ignore[misc]  # webdataset has no types
    """Batches of a shard set: the same number on every rank, each sample at most once an epoch.

    Iterating gives what is left of the current epoch; its last batch moves on to the next. Stages can be composed as
    with any ``webdataset.DataPipeline``; all pipelines composed of a loader share its state.

    An iteration that is left early begins at the same place again, whether by ``break`` or by ``with_epoch(n)``: the
    same n batches each time. To go on instead, call ``loader.load_state_dict(loader.state_dict())`` in between.

    Batches are dicts: tokens (B,N,H,W), or (B,N,r,chunk) with ``frame="none"``; scales (B,N,2) float32;
    condition_ids and attention_mask (B,L), or (B,K,L), int64; delta (B,hidden) float32; has_delta (B,) bool;
    valid (B,) bool; keys and the index ``columns``, lists of str, empty where a row only fills up the batch.

    Args:
        path: A set's directory, or several, which are taken as one.
        split: Samples of this split; None for all.
        batch_size: Rows of a batch on one rank.
        device: Where the tensors go.
        seed: Seed of the order and of the draws.
        shuffle: True: a full permutation; False: sample-number order; ``shards``: shards shuffled, and samples
            within each, so that neighbours in a store stay together.
        fields: Some of ``tokens``, ``weights``, ``scales``, ``condition``, ``delta``; None for all the set has but
            ``weights``. Only their bytes are read.
        overlay: An overlay of the set, whose deltas or texts stand in place of the set's own, or None; of several sets,
            a list with one for each.
        filters: Conditions on index columns in pyarrow's form, e.g. ``[("task", "in", ["arc_e"])]``.
        columns: Text columns of the index that go into batches under their names, e.g. ``("task", "checkpoint")``.
        view: Of ``weights``: ``pieces``, ``modules``, ``layers`` or ``flat``.
        frame: ``dnd``, ``fp32``, or ``none`` for the bare body.
        zero_std: What pieces of zero std show: ``nan`` or ``zeros``.
        dtype: dtype of tokens and weights; None for the stored one.
        form: ``prompt``, ``answer``, ``prompt_answer``; or ``mix``: prompt_answer with probability ``mix``, else prompt.
        mix: See ``form``; drawn for each text by itself, anew each epoch.
        num_texts: None takes the first text of a sample; K draws K without replacement, anew each epoch.
        max_text_length: Ids of a condition at most.
        padding: ``max_length``, or ``longest`` of the batch.
        rank: This rank; None asks torch.distributed, then RANK.
        world_size: Number of ranks; None asks likewise.
        remainder: ``drop`` leaves out an incomplete last batch, ``pad`` fills it up with rows that are not valid.
        on_bad_sample: ``raise``, or ``skip``: a damaged sample becomes a row of zeros that is not valid.
        max_bad_samples: Under ``skip``, raise after all beyond this many damaged samples; each counts once, however
            many epochs it comes in.
        readers: Reader threads, at most 1,024: some hundred keep any store busy, and some thousand a process cannot have.
        prefetch_batches: Batches read ahead, at most 1,024; memory is that of these and one more.
        verify: ``full``: the digest of all that is read; ``first-epoch``: of each sample when this loader reads it for
            the first time, in whatever epoch that is; ``off``.
        expect_digest: Digest that the set must have; one for each of several sets.

    Raises:
        UsageError: An option cannot be used, or not with this set; no sample is chosen; the batches read ahead would
            not fit the memory of this machine.
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
        overlay: Overlays = None,
        filters: Filters | None = None,
        columns: Sequence[str] = (),
        view: str = "pieces",
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
        arguments = locals()
        read, stream = from_arguments(ReadOptions, arguments), from_arguments(StreamOptions, arguments)
        ops = device_ops(device)
        # Imported here: pyarrow takes half of the time that importing the loader may take.
        from llgbm_loader.selection import select  # noqa: PLC0415

        selection = select(
            SelectOptions.of(path, overlay, split, filters, expect_digest, columns), read.fields
        )
        self._source = StreamSource(selection, read, stream, ops)
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
        self._source.state.set_epoch(whole_number("epoch", epoch, 0))

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
