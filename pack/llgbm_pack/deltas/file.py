"""The file of one delta, read strictly: a vector of finite floats, and the one its manifest describes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.npy import parse_npy, vector_norm
from llgbm_shards.storage import IrregularError, read_at_most, read_errors

#: Largest file of one delta or base activation read, in bytes.
MAX_DELTA_BYTES: Final = 64 << 20
_NORM_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedDelta:
    """One verified delta."""

    array: NDArray[np.float32]  # (hidden,), C-ordered; a base activation may be (probes, hidden)
    note: str  # what was changed on the way in (a cast), or empty


def load_delta(file: Path, *, width: int | None = None, norm: float | None = None) -> LoadedDelta:
    """Read a delta from an npy file and verify the width and the Euclidean norm (within 1e-3 relative) it must have.

    Raises:
        CheckpointError: The file is absent, not one vector of floats, not finite, or of another width or norm.
    """
    delta = read_array(file, dimensions=1)
    do = "Measure this delta again, or correct its manifest."
    if width is not None and delta.array.size != width:
        what, got = "delta of another width", f"{delta.array.size}"
        raise CheckpointError(what, where=file.name, expected=f"{width}", got=got, do=do)
    own = vector_norm(delta.array)
    if norm is not None and not math.isclose(own, norm, rel_tol=_NORM_TOLERANCE, abs_tol=1e-12):
        what, got = "delta of another norm than its manifest says", f"{own:.6g}"
        raise CheckpointError(what, where=file.name, expected=f"{norm:.6g}", got=got, do=do)
    return delta


def read_array(file: Path, *, dimensions: int) -> LoadedDelta:
    """Read floats of at most ``dimensions`` dimensions from an npy file; pickles and object arrays have no way in.

    Raises:
        CheckpointError: Absent, unreadable, too large, another dtype or rank, bytes missing or left over, not finite.
    """
    with read_errors(CheckpointError, file.name, "the delta cannot be read"):
        try:
            data = read_at_most(file, MAX_DELTA_BYTES)
        except IrregularError as error:
            raise CheckpointError("the delta is not a regular file", where=file.name) from error
    if len(data) > MAX_DELTA_BYTES:
        most = f"at most {MAX_DELTA_BYTES} bytes"
        raise CheckpointError("too large for a delta", where=file.name, expected=most)
    try:
        stored = parse_npy(data, where=file.name)
    except HeaderError as error:
        raise error.as_(CheckpointError) from error
    if not 1 <= stored.ndim <= dimensions or stored.size == 0:
        got = f"shape {stored.shape}"
        raise CheckpointError("delta of another shape", where=file.name, expected="(hidden,)", got=got)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(stored, "<f4")
    if not np.isfinite(array).all():
        got = f"{array.size - np.isfinite(array).sum()} other values"
        raise CheckpointError("delta not finite", where=file.name, expected="finite float32", got=got)
    note = "" if stored.dtype == np.dtype("<f4") else f"cast from {stored.dtype} to float32"
    return LoadedDelta(array=array, note=note)
