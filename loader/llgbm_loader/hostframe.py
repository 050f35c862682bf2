"""Tokens on the host, a block of pieces at a time, while the block is still in the cache.

Equals :func:`llgbm_loader.body.make_body` and :func:`llgbm_loader.frame.frame_tokens` to the bit, which work on
whole samples (and on a device).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.body import divisors
from llgbm_loader.frame import frame_tokens, write_frame
from llgbm_loader.tokens import TokenPlan
from llgbm_shards.layout import PADDING_BITS

#: Samples are read, hashed and framed in blocks of this size: few enough bytes for a core's second-level cache, and
#: so many that readers do not wait for each other to call the next step (with a quarter of it they frame 1.6 times
#: slower).
BLOCK_BYTES: Final = 1 << 21


class HostFramer:
    """Makes tokens of one sample's pieces, block by block.

    Args:
        plan: From pieces to tokens.
        scales: (N, 2) float32, the sample's.
        tokens: (N, H, W) or (N, r, chunk), written to; None when the blocks themselves become the tokens.
    """

    def __init__(self, plan: TokenPlan, scales: NDArray[np.float32], tokens: Tensor | None) -> None:
        self._plan = plan
        self._tokens = tokens
        self._padding = PADDING_BITS[plan.layout.dtype]
        self._constant = scales[:, 1] == 0
        self._empty = self._constant & (scales[:, 0] == 0)
        self._mean, self._std = divisors(torch.from_numpy(scales), plan.stored_dtype)
        self._codes = None if plan.frame == "none" else _codes(plan, scales)

    def finish(self, first: int, block: NDArray[Any]) -> None:
        """Finish the pieces from ``first`` on.

        Args:
            first: Number of the first piece.
            block: (n, r, chunk) their bits; overwritten with the body.
        """
        part = slice(first, first + len(block))
        constant, absent = self._constant[part], None
        if self._codes is not None and self._empty[part].any():
            # Before pieces of zero std become NaN: an absent module is what was padding from the start.
            absent = self._empty[part] & (block[:, 0, 0] == self._padding)
        body = torch.from_numpy(block.view(f"<i{block.itemsize}")).view(self._plan.stored_dtype)
        torch.sub(body, self._mean[part], out=body)
        torch.div(body, self._std[part], out=body)
        if self._plan.zero_std == "nan" and constant.any():
            block[constant] = self._padding
        if self._tokens is not None:
            self._write(self._tokens[part], body, part, absent)

    def _write(self, tokens: Tensor, body: Tensor, part: slice, absent: NDArray[np.bool_] | None) -> None:
        height, width = body.shape[-2:]
        tokens[:, :height, :width].copy_(body)
        if self._codes is not None:
            write_frame(tokens, self._codes[0][part], self._codes[1][part])
        if absent is not None and absent.any():
            tokens[torch.from_numpy(np.flatnonzero(absent))] = math.nan


def _codes(plan: TokenPlan, scales: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Codes of mean and std, (N,) each, read off the frame of pieces of one element."""
    pieces = torch.zeros((len(scales), 1, 1), dtype=plan.stored_dtype)
    frame = frame_tokens(
        pieces, torch.from_numpy(scales), frame=plan.frame, zero_std="zeros", dtype=plan.dtype
    )
    return frame[:, 0, -2].contiguous(), frame[:, 0, -1].contiguous()
