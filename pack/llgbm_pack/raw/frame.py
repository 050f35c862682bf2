"""Scales that a foreign LoRA tokenizer leaves in the frame of its tokens, as Drag-and-Drop-LLMs' do."""

from __future__ import annotations

from torch import Tensor

from llgbm_loader.frame import unframe

_BORDER = 2


def scales_in_frame(tokens: Tensor) -> Tensor | None:
    """The scales that tokens carry, None when they have no frame.

    A frame holds each code of a token many times: only tokens whose copies are all equal have one. Padding of one value
    all round is none.

    Args:
        tokens: (N, H, W) float32.

    Returns:
        (N, 2) float32, mean and std; (0, 0) where a frame is NaN.
    """
    if min(tokens.shape) == 0 or min(tokens.shape[-2:]) <= _BORDER:
        return None
    mean_code, std_code = tokens[:, 0, -2], tokens[:, 0, -1]
    copies = (
        _are(tokens[..., -2], mean_code[:, None]),
        _are(tokens[..., -1], std_code[:, None]),
        _are(tokens[:, -2:, 0:-2:2], mean_code[:, None, None]),
        _are(tokens[:, -2:, 1:-2:2], std_code[:, None, None]),
    )
    # Where mean and std have one code in every token, the border is padding of one value.
    told = mean_code.isfinite() & std_code.isfinite() & (mean_code != std_code)
    return unframe(tokens)[1] if all(copies) and bool(told.any()) else None


def _are(copies: Tensor, code: Tensor) -> bool:
    return bool(((copies == code) | (copies.isnan() & code.isnan())).all())
