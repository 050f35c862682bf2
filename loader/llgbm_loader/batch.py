"""The host side of a batch: its tensors, the rows that readers fill, and what becomes of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.conditions import ConditionMaker
from llgbm_loader.options import ReadOptions, needed_members
from llgbm_loader.reader import Row
from llgbm_loader.ring import Buffer
from llgbm_loader.tokens import TokenPlan
from llgbm_shards.errors import UsageError

if TYPE_CHECKING:  # it brings pyarrow, which takes half of the time that an import may take
    from llgbm_loader.selection import Selection


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What batches of a selection look like."""

    selection: Selection
    tokens: TokenPlan | None  # None when tokens are not wanted
    conditions: ConditionMaker | None  # None when they are not wanted
    pinned: bool  # host tensors are page-locked

    @classmethod
    def of(cls, selection: Selection, options: ReadOptions, *, on_device: bool, pinned: bool) -> BatchPlan:
        """The plan for these options; UsageError where the set does not allow them."""
        common = selection.common
        tokens = TokenPlan(common.layout, options, on_device) if "tokens" in common.fields else None
        conditions = ConditionMaker(common.spec, options) if common.spec is not None else None
        return cls(selection, tokens, conditions, pinned)

    def buffer_bytes(self, rows: int) -> int:
        """Bytes of the ring's buffer for a batch; 0 when tokens are not wanted."""
        return rows * self.tokens.host_bytes if self.tokens else 0

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
        if self.tokens is not None and buffer is not None:
            flat = torch.from_numpy(buffer).view(self.tokens.host_dtype)
            tensors["tokens"] = flat.view(rows, *self.tokens.host_shape)
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

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A batch on the host."""

    plan: BatchPlan
    tensors: dict[str, Tensor]  # by name; tokens holds bodies when a device makes the tokens of them
    lists: dict[str, list[str]]  # keys and index columns: a text for each row, empty where it only fills up

    def row(self, index: int) -> Row:
        """Where the sample of a row goes."""
        plan = self.plan.tokens
        tokens = self.tensors["tokens"][index] if plan is not None else None
        direct = tokens is not None and plan is not None and plan.direct
        return Row(
            body=_bits(tokens) if direct and tokens is not None else None,
            tokens=None if direct else tokens,
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
        plan = self.plan.tokens
        if plan is not None:
            copies["tokens"] = plan.make(copies["tokens"], copies["scales"])
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


def _bits(tensor: Tensor) -> NDArray[Any]:
    bits: NDArray[Any] = tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32).numpy()
    return bits
