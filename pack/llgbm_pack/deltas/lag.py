"""The lint for deltas that were measured between neighbours instead of against the base model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.manifest import DeltaEntry

#: A mean correlation of consecutive deltas below this is the mark of the fault.
LAG_FAULT_BELOW: Final = -0.35
#: Pairs of deltas without which a mean correlation says nothing.
LAG_MIN_PAIRS: Final = 8


class LagCorrelation:
    """Mean correlation of consecutive deltas, taken as they come by.

    Where adapters were injected into an already adapted base, delta i is ``activation[i] - activation[i-1]``, and
    neighbours share one activation with opposite sign: their correlation is near -0.5 instead of near or above 0.
    """

    def __init__(self) -> None:
        self._last: NDArray[np.float64] | None = None
        self._sum = 0.0
        self.pairs = 0

    def add(self, delta: NDArray[np.float32]) -> None:
        """Take the next delta in the manifest's order, (hidden,)."""
        row = delta.astype(np.float64)
        norm = float(np.linalg.norm(row))
        unit = row / norm if norm else None
        if unit is not None and self._last is not None and self._last.size == unit.size:
            self._sum += float(self._last @ unit)
            self.pairs += 1
        self._last = unit

    @property
    def value(self) -> float | None:
        """The mean, None with fewer than 8 pairs."""
        return self._sum / self.pairs if self.pairs >= LAG_MIN_PAIRS else None

    @property
    def suspicious(self) -> bool:
        """Whether the deltas look like differences of neighbours."""
        return self.value is not None and self.value < LAG_FAULT_BELOW


def delta_lag_correlation(entries: Iterable[DeltaEntry]) -> LagCorrelation:
    """The lint's figure for entries in the manifest's order; one delta is in memory at a time."""
    lag = LagCorrelation()
    for entry in entries:
        lag.add(entry.load().array)
    return lag
