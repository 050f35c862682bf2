"""How stored pieces become the weights of a batch, on the host block by block, on a device all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_loader.views import WeightView
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import PADDING_BITS

#: Rows are widened in parts of this many bytes, which stay in a core's second-level cache until they are put in place.
_WIDENED_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """From pieces to weights."""

    view: WeightView
    asked_dtype: torch.dtype | None  # None for the stored one

    def __post_init__(self) -> None:
        stored = self.stored_dtype
        if torch.promote_types(stored, self.dtype) != self.dtype:
            raise UsageError(
                "the weights would be rounded",
                where="option dtype",
                expected=" or ".join(map(str, dict.fromkeys((stored, torch.float32, None)))),
                got=f"{self.dtype}",
            )

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the pieces in the set."""
        return TORCH_DTYPE[self.view.layout.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.asked_dtype or self.stored_dtype

    @property
    def in_place(self) -> bool:
        """Pieces are the weights as they stand."""
        return self.view.view == "pieces" and self.dtype == self.stored_dtype

    def scratch(self) -> Tensor | None:
        """Memory for one sample's rows on the host: flat weights are made of whole stacks, which rows come to first."""
        if self.view.view != "flat":
            return None
        layout = self.view.layout
        return torch.empty(layout.num_tokens * layout.rank, layout.chunk, dtype=self.dtype)

    def make(self, pieces: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, ...) and ranks (B, M) of pieces (B, N, r, chunk), of which rows (B,) bool hold a sample."""
        return self.view.gather(pieces).to(self.dtype), self.view.ranks(pieces) * valid[:, None]


class HostGather:
    """Puts the blocks of one sample's pieces where its weights want them.

    Args:
        plan: From pieces to weights.
        weights: The sample's row of the batch; None where the pieces are read to it.
        ranks: (M,) int64, likewise.
        scratch: What :meth:`WeightPlan.scratch` gave the calling thread.
    """

    def __init__(
        self, plan: WeightPlan, weights: Tensor | None, ranks: NDArray[np.int64], scratch: Tensor | None
    ) -> None:
        self._plan, self._weights, self._ranks = plan, weights, ranks
        layout = plan.view.layout
        self._padding = PADDING_BITS[layout.dtype]
        self._scratch = scratch
        self._rows = weights if scratch is None else scratch
        widened = plan.dtype != plan.stored_dtype
        count = max(1, _WIDENED_BYTES // (layout.chunk * plan.dtype.itemsize)) if widened else 0
        self._wide = torch.empty(count, layout.chunk, dtype=plan.dtype)

    def take(self, first: int, block: NDArray[Any]) -> None:
        """Take the pieces from ``first`` on, bits (n, r, chunk), which stay as they are."""
        # The first value of a row is padding in rows that are nothing else.
        empty = block[:, :, 0] == self._padding
        firsts = self._plan.view.first_tokens
        here = slice(*np.searchsorted(firsts, (first, first + len(block))))
        self._ranks[here] = (~empty[firsts[here] - first]).sum(1)
        if self._rows is None:
            return
        stored = torch.from_numpy(block.view(f"<i{block.itemsize}")).view(self._plan.stored_dtype)
        order = self._plan.view.place
        if order is None:
            self._rows[first : first + len(block)].copy_(stored)
            return
        places = order[first * block.shape[1] : (first + len(block)) * block.shape[1]]
        target = _whole_rows(self._rows)
        start = 0
        for part in self._widened(stored.flatten(0, 1)):
            target[places[start : start + len(part)]] = _whole_rows(part)
            start += len(part)
        if empty.any():
            target[places[empty.reshape(-1)]] = np.zeros((), target.dtype)

    def _widened(self, rows: Tensor) -> Iterator[Tensor]:
        """Rows in the dtype of the weights: as they are where that is the stored one, else part by part."""
        if rows.dtype == self._wide.dtype:
            yield rows
            return
        for part in torch.split(rows, len(self._wide)):
            yield self._wide[: len(part)].copy_(part)

    def finish(self) -> None:
        """All pieces were taken."""
        if self._scratch is not None and self._weights is not None:
            self._plan.view.flatten(self._scratch[None], self._weights[None])


def _whole_rows(values: Tensor) -> NDArray[Any]:
    """Rows of ``chunk`` values as one item each: numpy moves these without looking into them."""
    width = values.shape[-1] * values.itemsize
    return values.view(torch.uint8).numpy().reshape(-1).view(f"V{width}")
