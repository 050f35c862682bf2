"""How stored pieces become the tokens of a batch: where, through which buffers, in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llgbm_loader.body import make_body
from llgbm_loader.frame import frame_tokens, refuse_narrow_codes
from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_shards.layout import Layout


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """From pieces to tokens."""

    layout: Layout
    frame: str  # dnd, fp32 or none
    zero_std: str  # nan or zeros
    asked_dtype: torch.dtype | None  # of the tokens; None for the stored one

    def __post_init__(self) -> None:
        refuse_narrow_codes(self.frame, self.stored_dtype, self.dtype)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the pieces in the set."""
        return TORCH_DTYPE[self.layout.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tokens."""
        return self.asked_dtype or self.stored_dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample's tokens."""
        return self.layout.pieces_shape if self.frame == "none" else self.layout.tokens_shape

    @property
    def in_place(self) -> bool:
        """Pieces become tokens without a change of shape or dtype."""
        return self.frame == "none" and self.dtype == self.stored_dtype

    def make(self, pieces: Tensor, scales: Tensor, *, overwrite: bool) -> Tensor:
        """Tokens of pieces (B, N, r, chunk) with scales (B, N, 2), on the device they are on.

        Args:
            pieces: The stored pieces.
            scales: Their scales.
            overwrite: The pieces are not needed any more.
        """
        body = make_body(pieces, scales, out=pieces if overwrite else None)
        return frame_tokens(body, scales, frame=self.frame, zero_std=self.zero_std, dtype=self.dtype)
