"""The host side of a batch: its tensors, the rows that readers fill, and what becomes of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.conditions import ConditionMaker
from llgbm_loader.options import ReadOptions, needed_members
from llgbm_loader.reader import Row
from llgbm_loader.ring import Buffer
from llgbm_loader.tensors import TORCH_DTYPE, bits
from llgbm_loader.tokens import TokenPlan
from llgbm_loader.views import WeightView
from llgbm_loader.weights import WeightPlan
from llgbm_shards.errors import UsageError

if TYPE_CHECKING:  # it brings pyarrow, which takes half of the time that an import may take
    from llgbm_loader.selection import Selection

_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What batches of a selection look like."""

    selection: Selection
    tokens: TokenPlan | None  # None when tokens are not wanted
    weights: WeightPlan | None  # None when weights are not wanted
    conditions: ConditionMaker | None  # None when they are not wanted
    on_device: bool  # the batch goes to an accelerator, which then makes tokens and weights
    pinned: bool  # host tensors are page-locked

    @classmethod
    def of(cls, selection: Selection, options: ReadOptions, *, on_device: bool, pinned: bool) -> BatchPlan:
        """The plan for these options; UsageError where the set does not allow them."""
        common = selection.common
        tokens = weights = None
        if "tokens" in common.fields:
            tokens = TokenPlan(common.layout, options.frame, options.zero_std, options.dtype)
        if "weights" in common.fields:
            weights = WeightPlan(WeightView(common.layout, options.view), options.dtype)
        conditions = ConditionMaker(common.spec, options) if common.spec is not None else None
        return cls(selection, tokens, weights, conditions, on_device, pinned)

    @property
    def large(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of a row of the tensors that lie on the ring's buffer."""
        layout = self.selection.common.layout
        if self.on_device and (self.tokens or self.weights):
            return {"pieces": (TORCH_DTYPE[layout.dtype], layout.pieces_shape)}
        large: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        if self.tokens:
            large["tokens"] = (self.tokens.dtype, self.tokens.shape)
        if self.weights:
            large["weights"] = (self.weights.dtype, self.weights.view.shape)
        return large

    @property
    def read_to(self) -> str | None:
        """The one of these that the stored pieces are read to as they are; None: they pass through a cache block."""
        if self.on_device:
            return "pieces"
        if self.weights and self.weights.in_place:
            return "weights"
        return "tokens" if self.tokens and self.tokens.in_place else None

    def buffer_bytes(self, rows: int) -> int:
        """Bytes of the ring's buffer for a batch; 0 when neither tokens nor weights are wanted."""
        return sum(_aligned(rows, *kind) for kind in self.large.values())

    def refuse_too_large(self, rows: int, batches: int) -> None:
        """Refuse what this machine's whole memory could not hold, whatever else is in it, before it is asked for."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        needed = self._host_bytes(rows) * batches
        if needed > memory:
            raise UsageError(
                "more than this machine's memory",
                where="options batch_size, prefetch_batches, max_text_length and num_texts",
                expected=f"at most {memory} bytes for {batches} batches of {rows} rows",
                got=f"{needed} bytes",
                do="Take fewer or smaller ones.",
            )

    def _host_bytes(self, rows: int) -> int:
        """Bytes of all host tensors of a batch, but for a few flags a row."""
        common = self.selection.common
        scales = 8 * common.layout.num_tokens if "scales" in needed_members(common.fields) else 0
        conditions = 16 * math.prod(self.conditions.shape) if self.conditions is not None else 0
        return self.buffer_bytes(rows) + rows * (scales + conditions + 4 * common.delta_width)

    def allocate(self, rows: int, buffer: Buffer | None) -> HostBatch:
        """Host tensors of a batch. The big one lies on the buffer of :meth:`buffer_bytes`, the small ones are fresh."""
        tensors: dict[str, Tensor] = {}
        common = self.selection.common
        if buffer is not None:
            used, flat = 0, torch.from_numpy(buffer)
            for name, (dtype, shape) in self.large.items():
                part = flat[used : used + rows * math.prod(shape) * dtype.itemsize]
                tensors[name] = part.view(dtype).view(rows, *shape)
                used += _aligned(rows, dtype, shape)
        if self.weights is not None and not self.on_device:
            tensors["ranks"] = self._empty((rows, len(common.layout.modules)), torch.int64)
        if "scales" in needed_members(common.fields):
            tensors["scales"] = self._empty((rows, common.layout.num_tokens, 2), torch.float32)
        if self.conditions is not None:
            tensors["condition_ids"] = self._empty((rows, *self.conditions.shape), torch.int64)
            tensors["attention_mask"] = self._empty((rows, *self.conditions.shape), torch.int64)
        if "delta" in common.fields:
            tensors["delta"] = self._empty((rows, common.delta_width), torch.float32)
            tensors["has_delta"] = self._empty((rows,), torch.bool)
        tensors["valid"] = self._empty((rows,), torch.bool)
        lists = {name: [""] * rows for name in ("keys", *self.selection.columns)}
        return HostBatch(self, tensors, lists)

    def present(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The fields of a batch, or of a row of one: weights as the view wants them."""
        if self.weights is None or not tensors:
            return dict(tensors)
        return {**tensors, **self.weights.view.present(tensors["weights"], tensors["ranks"])}

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A batch on the host."""

    plan: BatchPlan
    tensors: dict[str, Tensor]  # by name; pieces where a device makes tokens and weights of them
    lists: dict[str, list[str]]  # keys and index columns: a text a row, empty where a row fills up the batch

    def row(self, index: int) -> Row:
        """Where the sample of a row goes."""
        target = self.plan.read_to
        tokens, weights = (
            self.tensors[name][index] if name in self.tensors and name != target else None
            for name in ("tokens", "weights")
        )
        return Row(
            pieces=bits(self.tensors[target][index]).numpy() if target in self.tensors else None,
            tokens=tokens,
            weights=weights,
            ranks=self._array("ranks", index),
            on_host=not self.plan.on_device,
            scales=self._array("scales", index),
            delta=self._array("delta", index),
            ids=self._array("condition_ids", index),
            mask=self._array("attention_mask", index),
        )

    def fill(self, index: int, number: int) -> None:
        """Note which sample a row holds."""
        selection = self.plan.selection
        for name, text in (("keys", selection.key(number)), *selection.texts(number).items()):
            self.lists[name][index] = text
        self.tensors["valid"][index] = True
        if "has_delta" in self.tensors:
            self.tensors["has_delta"][index] = bool(selection.has_delta[number])

    def clear(self, index: int, *, row: Row | None = None) -> None:
        """Make a row invalid: zeros everywhere."""
        (row or self.row(index)).clear()
        for name in ("valid", "has_delta"):
            if name in self.tensors:
                self.tensors[name][index] = False

    def finish(self) -> dict[str, Any]:
        """The batch for a consumer on the CPU."""
        return self._trimmed(dict(self.tensors))

    def finish_on_device(self, copies: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the batch of the copies of :attr:`tensors` on a device."""
        plan, pieces = self.plan, copies.pop("pieces", None)
        if pieces is not None:
            if plan.weights is not None:
                copies["weights"], copies["ranks"] = plan.weights.make(pieces, copies["valid"])
            if plan.tokens is not None:
                overwrite = copies.get("weights") is not pieces
                copies["tokens"] = plan.tokens.make(pieces, copies["scales"], overwrite=overwrite)
                # Rows that hold no sample: their zero scales would have made a frame, or NaN.
                for index in np.flatnonzero(~self.tensors["valid"].numpy()).tolist():
                    copies["tokens"][index].zero_()
        return self._trimmed(copies)

    def _trimmed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "scales" not in self.plan.selection.common.fields:
            tensors.pop("scales", None)
        if self.plan.conditions is not None:
            columns = self.plan.conditions.trim(self.tensors["attention_mask"].numpy())
            for name in ("condition_ids", "attention_mask"):
                tensors[name] = tensors[name][..., columns].contiguous()
        return tensors

    def _array(self, name: str, index: int) -> NDArray[Any] | None:
        if name not in self.tensors:
            return None
        array: NDArray[Any] = self.tensors[name].numpy()[index]
        return array


def _aligned(rows: int, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a batch's tensor, up to where another one may begin."""
    return -(-rows * math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
