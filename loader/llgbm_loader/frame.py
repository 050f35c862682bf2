"""DnD's frame of scale codes around a body, and back.

A token is (H, W) = (r+2, chunk+2). From mean and std of its piece come two codes (Drag-and-Drop-LLMs):

    m = mean * 8        s = log(std * 0.9 + 0.1) + 1.6

The last two rows hold m, s, m, s, ... over all of W; then column -2 holds m and column -1 holds s over all of H.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from llgbm_loader.tensors import FLOATS, require_floats
from llgbm_shards.arguments import is_one_of, require, shown
from llgbm_shards.errors import UsageError

FRAMES: Final = ("dnd", "fp32", "none")
ZERO_STDS: Final = ("nan", "zeros")
_BORDER: Final = 2


def frame_tokens(
    body: Tensor,
    scales: Tensor,
    *,
    frame: str = "dnd",
    zero_std: str = "nan",
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Makes tokens of a body and its scales, on the device they are on; on CUDA without waiting for it.

    A wholly padded token (absent module: scales (0, 0) and NaN body) is NaN all over, in its frame too. A piece of
    zero std has a valid frame; its body is NaN or zeros as ``zero_std`` says.

    Args:
        body: (N, r, chunk) or (B, N, r, chunk), normalised pieces.
        scales: (N, 2) or (B, N, 2) float32, mean and std.
        frame: ``dnd``: codes computed in the body's dtype, to the bit as Drag-and-Drop-LLMs; ``fp32``: in float32;
            ``none``: tokens are the body.
        zero_std: ``nan`` or ``zeros``.
        dtype: dtype of the tokens; the body's by default.
        out: Tensor of the result's shape and dtype to write to. With ``frame="none"`` it may be ``body`` itself, which
            is then finished in place.

    Returns:
        Tokens (..., N, r+2, chunk+2), or (..., N, r, chunk) with ``frame="none"``: ``body`` itself where nothing has
        to change, else new memory or ``out``.

    Raises:
        UsageError: An option is unknown, something is no dense tensor of floats, shapes or devices disagree, or
            ``dtype`` cannot hold the codes.
    """
    _check(body, scales, frame, zero_std, dtype)
    wanted = dtype or body.dtype
    refuse_narrow_codes(frame, body.dtype, wanted)
    height, width = body.shape[-2:]
    if frame == "none":
        return _finish_body(body, scales, zero_std, wanted, out)
    shape = (*body.shape[:-2], height + _BORDER, width + _BORDER)
    tokens = (
        torch.empty(shape, dtype=wanted, device=body.device)
        if out is None
        else _fits(out, shape, wanted, body.device)
    )
    inner = tokens[..., :height, :width]
    inner.copy_(body)
    _mask_zero_std(inner, scales, zero_std)
    mean_code, std_code = _codes(body, scales, code_dtype(frame, body.dtype))
    write_frame(tokens, mean_code, std_code)
    return tokens


def code_dtype(frame: str, stored: torch.dtype) -> torch.dtype:
    """The dtype that codes are computed in, for bodies of dtype ``stored``."""
    return stored if frame == "dnd" else torch.float32


def refuse_narrow_codes(frame: str, stored: torch.dtype, dtype: torch.dtype) -> None:
    """The one rule for codes of bodies of dtype ``stored`` in tokens of ``dtype``: it holds each as it was computed.

    Else UsageError: codes would be rounded, and the std decoded of them could turn negative.
    """
    codes = code_dtype(frame, stored)
    if frame != "none" and torch.promote_types(codes, dtype) != dtype:
        raise UsageError(
            f"{_name(codes)} scale codes would be rounded",
            where="option dtype",
            expected=f"{codes}" if codes == torch.float32 else f"{codes} or torch.float32",
            got=f"{dtype} with frame={frame!r} on bodies of {_name(stored)}",
            do='Ask for such a dtype, or for frame="none".',
        )


def write_frame(tokens: Tensor, mean_code: Tensor, std_code: Tensor) -> None:
    """Writes the frame of tokens (..., N, H, W) in place, from codes (..., N) of mean and std."""
    mean_code, std_code = mean_code.to(tokens.dtype)[..., None], std_code.to(tokens.dtype)[..., None]
    tokens[..., -2:, 0::2] = mean_code[..., None]
    tokens[..., -2:, 1::2] = std_code[..., None]
    tokens[..., -2] = mean_code
    tokens[..., -1] = std_code


def unframe(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Decodes tokens without scales, such as a generator's.

    Each code is the average, in float64, of all its copies in the frame, which is the best guess where a generator
    wrote them with noise, and exact where they are equal. mean = m / 8; std = (exp(s - 1.6) - 0.1) / 0.9, at least 0.

    Args:
        tokens: (N, H, W) or (B, N, H, W), floats.

    Returns:
        body (..., N, H-2, W-2), a view of ``tokens``, and scales (..., N, 2) float32; (0, 0) where a frame is NaN.

    Raises:
        UsageError: Not a dense tensor of floats, or too small to have a frame.
    """
    require_floats("tokens", tokens)
    if tokens.ndim < 3 or min(tokens.shape[-2:]) <= _BORDER:
        raise UsageError(
            "tokens have no frame",
            where="tokens",
            expected="(..., N, r+2, chunk+2)",
            got=f"{tuple(tokens.shape)}",
        )
    mean_code = _average(tokens[..., -2], tokens[..., -2:, 0:-2:2])
    std_code = _average(tokens[..., -1], tokens[..., -2:, 1:-2:2])
    std = ((torch.exp(std_code - 1.6) - 0.1) / 0.9).clamp(min=0)
    scales = torch.stack([mean_code / 8, std], dim=-1)
    scales = torch.where(scales.isnan().any(-1, keepdim=True), torch.zeros_like(scales), scales)
    return tokens[..., :-_BORDER, :-_BORDER], scales.to(torch.float32)


def _average(column: Tensor, rows: Tensor) -> Tensor:
    wide = torch.cat([column, rows.flatten(-2)], dim=-1).to(torch.float64)
    return wide.mean(dim=-1)


def _codes(body: Tensor, scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, std = scales[..., 0], scales[..., 1]
    absent = (mean == 0) & (std == 0) & body[..., 0, 0].isnan()
    mean_code = mean.to(dtype) * 8
    # One rounding a step, in this order: the codes equal those of Drag-and-Drop-LLMs to the bit.
    std_code = torch.log(std.to(dtype) * 0.9 + 0.1) + 1.6
    return mean_code.masked_fill(absent, math.nan), std_code.masked_fill(absent, math.nan)


def _finish_body(
    body: Tensor, scales: Tensor, zero_std: str, dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    if out is None:
        if zero_std == "zeros":
            return body.to(dtype)
        # Only on the CPU is it free to look whether anything has to change.
        if dtype == body.dtype and body.device.type == "cpu" and not bool((scales[..., 1] == 0).any()):
            return body
        out = torch.empty(body.shape, dtype=dtype, device=body.device)
    _fits(out, tuple(body.shape), dtype, body.device)
    if out is not body:
        out.copy_(body)
    _mask_zero_std(out, scales, zero_std)
    return out


def _mask_zero_std(body: Tensor, scales: Tensor, zero_std: str) -> None:
    if zero_std == "zeros":
        return
    constant = scales[..., 1] == 0
    if body.device.type == "cpu":
        # Touches only the pieces concerned; on other devices the index would have to be waited for.
        if bool(constant.any()):
            body[constant] = math.nan
        return
    body.masked_fill_(constant[..., None, None], math.nan)


def _fits(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    require_floats("out", out)
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != device:
        expected, got = f"{dtype} {shape} on {device}", f"{out.dtype} {tuple(out.shape)} on {out.device}"
        raise UsageError("out does not fit the tokens", where="out", expected=expected, got=got)
    return out


def _check(body: Tensor, scales: Tensor, frame: str, zero_std: str, dtype: torch.dtype | None) -> None:
    for option, value, known in (("frame", frame, FRAMES), ("zero_std", zero_std, ZERO_STDS)):
        if not is_one_of(value, known):
            raise UsageError("unknown value", where=option, expected=" or ".join(known), got=shown(value))
    require(is_one_of(dtype, (None, *FLOATS)), "option dtype", "a dtype of floats", dtype)
    require_floats("body", body)
    require_floats("scales", scales)
    if body.ndim not in (3, 4) or tuple(scales.shape) != (*body.shape[:-2], 2):
        got = f"{tuple(body.shape)} and {tuple(scales.shape)}"
        expected = "(..., N, r, chunk) and (..., N, 2)"
        raise UsageError("body and scales do not fit", where="scales", expected=expected, got=got)
    if body.device != scales.device:
        expected, got = f"{body.device}, as the body", f"{scales.device}"
        raise UsageError("on another device", where="scales", expected=expected, got=got)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
