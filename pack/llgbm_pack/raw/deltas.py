"""Deltas for the raw datasets: joined once, verified once, then read one at a time."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_pack.deltas.agree import Refusal, refuse_mixed, settle, verify
from llgbm_pack.deltas.cache import DeltaCache
from llgbm_pack.deltas.join import join_deltas
from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.raw.repeats import LazyMap
from llgbm_shards.arguments import require
from llgbm_shards.errors import CheckpointError, UsageError

Maps = Sequence[tuple[str, str]]

_LOG = logging.getLogger(__name__)
_REFUSAL: Final = Refusal(
    kind=UsageError,
    where="delta_cache",
    maps="maps=[(old, new)]",
    apart="Use one folder of checkpoints, or one cache, for each.",
    most="most",
)


class DeltaSource:
    """A delta cache to read from.

    Args:
        cache: A ``DeltaCache``, its directory, or any object whose ``get_all_deltas()`` gives arrays by path.

    Raises:
        UsageError: It is none of these, or has no manifest it can be read by.
        StorageError: It cannot be read.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = DeltaCache(cache) if isinstance(cache, (str, os.PathLike)) else cache
        if isinstance(self.cache, DeltaCache):
            self.entries = self.cache.entries()
            return
        if not hasattr(self.cache, "get_all_deltas"):
            expected = "a DeltaCache or its directory"
            raise UsageError(
                "not a delta cache", where="delta_cache", expected=expected, got=repr(cache)[:80]
            )
        arrays = self.cache.get_all_deltas()
        require(isinstance(arrays, Mapping), "delta_cache.get_all_deltas()", "arrays by path", arrays)
        self._arrays = {os.fspath(path): delta for path, delta in arrays.items()}
        self.entries = tuple(
            DeltaEntry(key=path, name="", path=path, file=Path(path)) for path in self._arrays
        )

    def load(self, entry: DeltaEntry) -> NDArray[np.float32]:
        """One delta, (hidden,) float32; a CheckpointError when it is absent, damaged or not as its manifest says."""
        if isinstance(self.cache, DeltaCache):
            return entry.load().array
        return _as_array(self._arrays[entry.path], entry.path)

    def tensor(self, entry: DeltaEntry) -> Tensor:
        """One delta, (hidden,) float32, in memory of its own; as :meth:`load` otherwise."""
        return torch.tensor(self.load(entry))

    def by_path(self, entries: Mapping[str, DeltaEntry]) -> LazyMap[str, NDArray[np.float32]]:
        """Deltas by checkpoint path, (hidden,) float32 each; every look-up reads its file."""
        return LazyMap(entries, functools.partial(_load, self, entries))

    def own_width(self) -> int:
        """The width of the cache's deltas, whomever they belong to, else of its base activation; 0 without either."""
        for entry in self.entries:
            if entry.width:
                return entry.width
            try:
                return len(self.load(entry))
            except CheckpointError:
                continue  # its owner, if it has one, is told why
        base = self.cache.get_base_activation() if isinstance(self.cache, DeltaCache) else None
        return 0 if base is None else base.shape[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedDeltas:
    """Which delta belongs to which checkpoint."""

    source: DeltaSource
    entries: dict[str, DeltaEntry]  # by path of a checkpoint, its delta where that is sound
    faults: dict[str, str]  # by path of a checkpoint, why its delta cannot be used
    width: int  # of the deltas; 0 when neither they nor the cache tell

    def why_none(self, path: str) -> str:
        """Why a checkpoint has no delta."""
        return self.faults.get(path, "no delta in the cache")

    def zeros(self) -> Tensor:
        """What stands for a missing delta, (hidden,) float32; refused where the width is not known."""
        if not self.width:
            raise UsageError(
                "the width of a missing delta is not known",
                where="delta_cache",
                expected="a delta or a base activation in the cache",
                got="neither",
                do="Compute the deltas first, or leave out checkpoints without one (require_delta=True).",
            )
        return torch.zeros(self.width)


def join_verified(
    source: DeltaSource,
    checkpoints: Sequence[str],
    *,
    zoo_root: str | os.PathLike[str],
    wanted: Sequence[str] | None = None,
    maps: Maps = (),
    tasks: Mapping[str, str] | None = None,
) -> JoinedDeltas:
    """Join checkpoints with deltas as a build does, and read each joined delta once to verify it; none is kept.

    ``checkpoints`` are all that are known of, for each claims its own delta: paths relative to ``zoo_root``, each once.
    Those to find deltas for are ``wanted``, all by default. ``tasks`` are those that the zoo's own manifest names, by
    path; None where the checkpoints are of no zoo. Refused are a checkpoint with two candidates, a delta that contradicts
    itself or its task, deltas that were not measured alike, and deltas of no width that most of them share.
    """
    joined = join_deltas(
        checkpoints, zoo_root=zoo_root, entries=source.entries, maps=maps, tasks=tasks, load=source.load
    )
    settled = settle(joined, set(checkpoints if wanted is None else wanted), _REFUSAL)
    for path, what in settled.notes:
        _LOG.warning("%s: %s", path, what)
    matches = settled.matches
    refuse_mixed(matches, _REFUSAL)
    width, faults = verify(((path, match.entry) for path, match in matches.items()), source.load, _REFUSAL)
    sound = {path: match.entry for path, match in matches.items() if path not in faults}
    return JoinedDeltas(source=source, entries=sound, faults=faults, width=width or source.own_width())


def _load(source: DeltaSource, entries: Mapping[str, DeltaEntry], path: str) -> NDArray[np.float32]:
    return source.load(entries[path])


def _as_array(delta: object, path: str) -> NDArray[np.float32]:
    """What a foreign cache holds for a path, as an array of its own."""
    values = delta.detach().float().cpu().numpy() if isinstance(delta, Tensor) else delta
    expected = "(hidden,) finite floats"
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        got = type(delta).__name__
        raise CheckpointError("not a delta", where=path, expected=expected, got=got) from error
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        got = f"shape {array.shape}, {array.size - np.isfinite(array).sum()} not finite"
        raise CheckpointError("not a delta", where=path, expected=expected, got=got)
    return array
