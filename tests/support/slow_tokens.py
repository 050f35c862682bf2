"""Plain reference of the weight tokens: formulas only, a piece at a time, sharing no code with the package."""

from __future__ import annotations

import math

import numpy as np
import torch

#: Significant bits and exponent of the smallest subnormal.
FORMATS = {"bfloat16": (8, -133), "float16": (11, -24), "float32": (24, -149)}


def round_float(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds float64 to the numbers of a dtype, ties to even (no overflow handling)."""
    bits, smallest = FORMATS[dtype]
    values = np.asarray(values, dtype=np.float64)
    exponent = np.maximum(np.frexp(values)[1] - bits, smallest)
    return np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)


def fold(values: np.ndarray) -> np.ndarray:
    """Sums of (K, n) along n: zero-extended to a power of two, halves added until one is left."""
    width = 1
    while width < values.shape[1]:
        width *= 2
    values = np.pad(values, ((0, 0), (0, width - values.shape[1])))
    while values.shape[1] > 1:
        low, high = np.split(values, 2, axis=1)
        values = low + high
    return values[:, 0]


def moments(pieces: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of (K, n) float64 pieces, as used."""
    n = pieces.shape[1]
    mean = fold(pieces) / n
    deviation = pieces - mean[:, None]
    std = np.sqrt(fold(deviation * deviation) / (n - 1)) if n > 1 else np.zeros(len(pieces))
    rounded = round_float(std, dtype)
    tiny = 2.0 ** FORMATS[dtype][1]
    return round_float(mean, dtype) + 0.0, np.where((rounded == 0) & (std > 0), tiny, rounded)


def normalise(pieces: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Bodies (K, n) and scales (K, 2) of (K, n) float64 pieces."""
    mean, std = moments(pieces, dtype)
    centred = round_float(pieces - mean[:, None], dtype)
    with np.errstate(invalid="ignore"):
        # Too small for the double rounding over float64 to show: 53 >= 2 * 24 + 2.
        body = round_float(centred / np.where(std == 0, 1, std)[:, None], dtype)
    body[std == 0] = 0.0
    return body, np.stack([mean, std], axis=1)


def slow_body(
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], names: list[str], rank: int, chunk: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Body (N, rank, chunk) with NaN padding and scales (N, 2), a piece at a time; ``names`` must all be present."""
    bodies, scales = [], []
    for name in names:
        low, high = pairs[name]
        for matrix in (low.double().numpy(), high.double().numpy().T):
            for number in range(math.ceil(matrix.shape[1] / chunk)):
                piece = matrix[:, number * chunk : (number + 1) * chunk]
                body, scale = normalise(piece.reshape(1, -1), dtype)
                token = np.full((rank, chunk), np.nan)
                token[: piece.shape[0], : piece.shape[1]] = body.reshape(piece.shape)
                bodies.append(token)
                scales.append(scale[0])
    return np.stack(bodies), np.stack(scales)


def slow_pieces(
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], names: list[str], rank: int, chunk: int, dtype: str
) -> torch.Tensor:
    """Pieces (N, rank, chunk) with NaN padding, a value at a time; a name that is not there is padding."""
    widths = {name: (low.shape[1], high.shape[0]) for name, (low, high) in pairs.items()}
    pieces = []
    for name in names:
        for matrix, width in zip((pairs[name][0], pairs[name][1].T), widths[name], strict=True):
            for number in range(math.ceil(width / chunk)):
                token = torch.full((rank, chunk), math.nan, dtype=getattr(torch, dtype))
                part = matrix[:, number * chunk : (number + 1) * chunk]
                token[: part.shape[0], : part.shape[1]] = part
                pieces.append(token)
    return torch.stack(pieces)


def plain_nan(values: torch.Tensor) -> torch.Tensor:
    """The same values, every NaN in the one pattern of padding: arithmetic gives it another on some processors."""
    bits = values.view(torch.int32 if values.itemsize == 4 else torch.int16)
    padding = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float32: 0x7FC00000}[values.dtype]
    return bits.masked_fill(values.isnan(), padding).view(values.dtype)


def bits_of(values: np.ndarray | torch.Tensor, dtype: str) -> torch.Tensor:
    """The bit patterns of values in a dtype that holds them; the reference's NaN as the one pattern of padding."""
    integers = torch.int32 if dtype == "float32" else torch.int16
    if isinstance(values, torch.Tensor):
        assert values.dtype == getattr(torch, dtype)
        return values.view(integers)
    tensor = torch.from_numpy(values).to(getattr(torch, dtype))
    np.testing.assert_array_equal(tensor.double().numpy(), values)
    # torch casts NaN to different patterns on different code paths.
    padding = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000}[dtype]
    return tensor.view(integers).masked_fill(torch.from_numpy(np.isnan(values)), padding)
