"""How a stored body becomes the tokens of a batch: where, through which buffers, in which dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llgbm_loader.frame import frame_tokens, refuse_narrow_codes
from llgbm_loader.options import ReadOptions
from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_shards.layout import Layout


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """From body to tokens."""

    layout: Layout  # of the bodies
    options: ReadOptions
    on_device: bool  # the batch goes to an accelerator, which then makes the tokens

    def __post_init__(self) -> None:
        refuse_narrow_codes(self.options.frame, self.stored_dtype, self.dtype)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the bodies in the set."""
        return TORCH_DTYPE[self.layout.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tokens."""
        return self.options.dtype or self.stored_dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample's tokens."""
        return self.layout.body_shape if self.options.frame == "none" else self.layout.tokens_shape

    @property
    def direct(self) -> bool:
        """The bytes read are the tokens (or go to the device as they are): readers write to the final buffer."""
        return self.on_device or (self.options.frame == "none" and self.dtype == self.stored_dtype)

    @property
    def host_shape(self) -> tuple[int, int, int]:
        """Shape of one sample in the host buffer that readers fill."""
        return self.layout.body_shape if self.direct else self.shape

    @property
    def host_dtype(self) -> torch.dtype:
        """The dtype of the host buffer that readers fill."""
        return self.stored_dtype if self.direct else self.dtype

    @property
    def host_bytes(self) -> int:
        """Bytes of one sample in the host buffer."""
        return math.prod(self.host_shape) * self.host_dtype.itemsize

    def make(self, body: Tensor, scales: Tensor) -> Tensor:
        """Tokens of whole bodies (B, N, r, chunk) with scales (B, N, 2), on the device they are on."""
        options = self.options
        return frame_tokens(body, scales, frame=options.frame, zero_std=options.zero_std, dtype=self.dtype)
