"""From pieces and their scales to the body: the arithmetic of Drag-and-Drop-LLMs, on whatever device they are on.

    body = (pieces - mean) / std

Mean and std are values of the pieces' dtype, and each of the two steps is rounded to it once. torch computes 16-bit
steps in float32 and rounds, which is the same (24 bits of significand are at least twice 11 and 2 more). The divisors
are tensors on the pieces' device and the steps run eagerly: there division is exact, while compiled code, or a divisor
that is a scalar on the host, multiplies by a reciprocal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divisors(scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What pieces are shifted and divided by.

    A piece of zero std (all its values are its mean) gets the divisor 1, and in place of a mean of zero the negative
    zero: then all its values become positive zeros, whatever signs its own zeros have.

    Args:
        scales: (..., N, 2) float32, mean and std, which the dtype holds exactly.
        dtype: The pieces' dtype.

    Returns:
        mean and std, (..., N, 1, 1) in that dtype.
    """
    mean, std = scales.to(dtype)[..., None, None].unbind(-3)
    constant = std == 0
    return mean.masked_fill(constant & (mean == 0), -0.0), std.masked_fill(constant, 1)


def make_body(pieces: Tensor, scales: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The body of pieces: padding stays NaN, pieces of zero std become zeros.

    Args:
        pieces: (..., N, r, chunk), as a set stores them.
        scales: (..., N, 2) float32, on the same device.
        out: Where to; may be ``pieces``.

    Returns:
        (..., N, r, chunk) in the pieces' dtype.
    """
    mean, std = divisors(scales, pieces.dtype)
    body = torch.sub(pieces, mean, out=out)
    return torch.div(body, std, out=body)
