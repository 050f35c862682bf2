"""Weights in another dtype than their file's, and what they lose of it."""

from __future__ import annotations

import torch
from torch import Tensor


class Casts:
    """Tensors cast to one dtype, in buffers that stay: an encoder binds to their addresses.

    Args:
        dtype: The dtype.
        chunk: Width of a piece, in values.

    Attributes:
        vanished: Tensor -> how many of its pieces were not all zeros and now are; of the casts since :meth:`begin`.
    """

    def __init__(self, dtype: torch.dtype, chunk: int) -> None:
        self._dtype = dtype
        self._chunk = chunk
        self._buffers: dict[str, Tensor] = {}
        self.vanished: dict[str, int] = {}

    def begin(self) -> None:
        """Forget what the last checkpoint lost."""
        self.vanished = {}

    def cast(self, key: str, tensor: Tensor, *, across: int) -> Tensor:
        """The tensor in the dtype; itself where it has that already.

        Args:
            key: Its name.
            tensor: (r, in) or (out, r).
            across: The dimension of the rank; pieces are cut along the other.
        """
        if tensor.dtype == self._dtype:
            return tensor
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape:
            buffer = self._buffers[key] = torch.empty(tensor.shape, dtype=self._dtype)
        buffer.copy_(tensor)
        there, left = ((values != 0).any(across) for values in (tensor, buffer))
        if not torch.equal(there, left):
            lost = sum(
                bool(before.any()) and not bool(after.any())
                for before, after in zip(
                    torch.split(there, self._chunk), torch.split(left, self._chunk), strict=True
                )
            )
            if lost:
                self.vanished[key] = lost
        return buffer
