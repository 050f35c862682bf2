"""Tokens on the host, a block of pieces at a time, while the block is still in the cache.

Equals :func:`llgbm_loader.frame.frame_tokens` to the bit, which works on whole bodies (and on a device).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.frame import frame_tokens, write_frame
from llgbm_loader.tokens import TokenPlan
from llgbm_shards.layout import PADDING_BITS


class HostFramer:
    """Finishes the blocks of one sample's body, with its scales (N, 2).

    Tokens are written to (N, H, W) or (N, r, chunk); without these the body is finished in place.
    """

    def __init__(self, plan: TokenPlan, scales: NDArray[np.float32], tokens: Tensor | None) -> None:
        self._plan = plan
        self._tokens = tokens
        self._padding = PADDING_BITS[plan.layout.dtype]
        self._constant = scales[:, 1] == 0
        self._empty = self._constant & (scales[:, 0] == 0)
        self._codes = None if plan.options.frame == "none" else _codes(plan, scales)

    @property
    def idle(self) -> bool:
        """The stored bytes are the tokens as they are: nothing to finish."""
        masks = self._plan.options.zero_std == "nan" and bool(self._constant.any())
        return self._tokens is None and not masks

    def finish(self, first: int, block: NDArray[Any]) -> None:
        """Finish the n pieces from ``first`` on, whose bits are ``block`` (n, r, chunk), overwritten."""
        part = slice(first, first + len(block))
        constant, absent = self._constant[part], None
        if self._codes is not None and self._empty[part].any():
            # Before pieces of zero std become NaN: an absent module is what was padding from the start.
            absent = self._empty[part] & (block[:, 0, 0] == self._padding)
        if self._plan.options.zero_std == "nan" and constant.any():
            block[constant] = self._padding
        if self._tokens is not None:
            body = torch.from_numpy(block.view(f"<i{block.itemsize}")).view(self._plan.stored_dtype)
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
    options = plan.options
    frame = frame_tokens(
        pieces, torch.from_numpy(scales), frame=options.frame, zero_std="zeros", dtype=plan.dtype
    )
    return frame[:, 0, -2].contiguous(), frame[:, 0, -1].contiguous()
