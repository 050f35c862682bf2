"""Mean and standard deviation of pieces: the same bits on every machine, at the speed of any-order sums.

The definition. Take the n real (not padded) elements of a piece, in row-major order of the (r, chunk) piece, as
float64; append zeros up to the next power of two; fold: add the second half to the first, elementwise, until one
number is left. That is ``sum``.

    mean64 = sum(x) / n
    d      = x - mean64                      (each rounded to float64; real elements only, then zeros again)
    std64  = sqrt(sum(d * d) / (n - 1))      (0 for n = 1)

Mean and std used are these, rounded once (nearest, ties to even) from float64 to the source's dtype; a mean of -0 is
written +0. std64 is 0 exactly when all elements are equal (sums of n equal values of at most 24 bits are exact).
Where std64 is not 0 but rounds to 0, the smallest positive number of the dtype is used: the piece's deviations are
then small whole multiples of it, so nothing is lost.

The speed. Sums in any order (vectorised, fused, threaded) are off by a known bound. Both ends of the interval that
the bound leaves are rounded to the dtype: where they agree, the defined result is known, whatever the order (Ziv's
rounding test). The few pieces where they differ, and constant ones, are folded as defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

#: Smallest positive (subnormal) number of each dtype.
TINY: Final = {"bfloat16": 2.0**-133, "float16": 2.0**-24, "float32": 2.0**-149}
#: Largest finite number of each dtype.
LARGEST: Final = {
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float16": 65504.0,
    "float32": (2 - 2.0**-23) * 2.0**127,
}


def round_to(values: Float64s, dtype: str) -> Float32s:
    """Rounds float64 once, to nearest even, to a dtype; the results are returned as float32, which holds them all.

    A value that the dtype cannot hold becomes infinite.
    """
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return values.astype(np.float16).astype(np.float32)
        near = values.astype(np.float32)
    return near if dtype == "float32" else _bfloat16(near, values)


def _bfloat16(near: Float32s, values: Float64s) -> Float32s:
    bits = near.view(np.uint32)
    # A float32 half way between two bfloat16 may have been rounded there: step back to the side it came from,
    # or the second rounding goes wrong.
    tie = (bits & 0xFFFF) == 0x8000
    if tie.any():
        away = (np.abs(values) > np.abs(near)).astype(np.uint32)
        toward = (np.abs(values) < np.abs(near)).astype(np.uint32)
        bits = np.where(tie, bits + away - toward, bits)
    upper: Any = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    rounded: Float32s = upper.astype(np.uint32).view(np.float32)
    return rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Constants of T pieces, computed once."""

    n: Float64s  # (T,) count of real elements of each piece, as float64
    divisors: Float64s  # (4, T) n, n, n - 1, n - 1 (1 where n is 1)
    sum_slack: Float64s  # (T,) bound on the error of a sum, as a multiple of the root of the sum of squares
    # (T,) bound on the error of the sum of squared deviations, as a multiple of the sum of squares.
    spread_slack: Float64s

    @classmethod
    def of(cls, sizes: list[int]) -> Counts:
        """Constants of pieces with these numbers of real elements."""
        n = np.array(sizes, dtype=np.float64)
        below = np.maximum(n - 1, 1)
        # A sum of n products in any order errs by at most n 2^-53 of the sum of magnitudes (Higham, Accuracy and
        # Stability, section 3.1), the defined fold by (log2(n) + 2) 2^-53. This is twice both together, which
        # covers the handful of roundings in the formulas of `decide`.
        epsilon = (n + 64) * 2.0**-52
        # Cauchy-Schwarz: the sum of magnitudes is at most sqrt(n * squares). The sum of (x - mean64)^2 differs from
        # squares - sums^2 / n by 1.5 epsilon of squares at most.
        return cls(
            n=n,
            divisors=np.stack([n, n, below, below]),
            sum_slack=epsilon * np.sqrt(n),
            spread_slack=4 * epsilon,
        )


def decide(
    sums: Float64s, squares: Float64s, counts: Counts, dtype: str
) -> tuple[Float32s, Float32s, npt.NDArray[np.bool_]]:
    """Rounds mean and std of pieces whose sums were taken in any order.

    Args:
        sums: (T,) sums of the elements, finite.
        squares: (T,) sums of their squares, finite.
        counts: Constants of the T pieces.
        dtype: The source's dtype.

    Returns:
        mean (T,), std (T,), open (T,): where ``open`` is True the piece must be folded, see :func:`fold_moments`.
    """
    ends = np.empty((4, len(sums)))
    slack = counts.sum_slack * np.sqrt(squares)
    np.subtract(sums, slack, out=ends[0])
    np.add(sums, slack, out=ends[1])
    spread = squares - sums * sums / counts.n
    slack = counts.spread_slack * squares
    np.maximum(spread - slack, 0, out=ends[2])
    np.add(spread, slack, out=ends[3])
    ends /= counts.divisors
    np.sqrt(ends[2:], out=ends[2:])
    low_mean, high_mean, low_std, high_std = round_to(ends, dtype)
    still_open = (low_mean != high_mean) | (low_std != high_std) | ((low_std == 0) & (squares > 0))
    return low_mean + np.float32(0), low_std, still_open


def fold_moments(pieces: Float64s, dtype: str) -> tuple[Float32s, Float32s]:
    """Mean (K,) and std (K,) of pieces, by the definition at the top, as float32 that the dtype holds exactly.

    ``pieces`` are (K, n) real elements in row-major order of the (r, chunk) piece.
    """
    n = pieces.shape[1]
    mean = _fold(pieces) / n
    deviations = pieces - mean[:, None]
    np.square(deviations, out=deviations)
    std = np.sqrt(_fold(deviations) / max(n - 1, 1))
    used = round_to(std, dtype)
    used[(used == 0) & (std > 0)] = TINY[dtype]
    return round_to(mean, dtype) + np.float32(0), used


def _fold(values: Float64s) -> Float64s:
    count, n = values.shape
    half = 1 << max(n - 1, 0).bit_length()
    line = np.zeros((count, half))
    line[:, :n] = values
    while half > 1:
        half //= 2
        line = line[:, :half] + line[:, half : 2 * half]
    total: Float64s = line[:, 0]
    return total
