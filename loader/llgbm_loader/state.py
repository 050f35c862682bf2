"""Where a loader stands: what its consumer has received, never what was only read ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from llgbm_shards.errors import UsageError

VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What the meaning of a position depends on."""

    sets: tuple[str, ...]  # their digests, in their order
    overlays: tuple[str, ...]  # digests of their overlays, "" of a set without one
    split: str | None
    filters: str  # as one text
    seed: int  # of the order
    shuffle: bool | str
    samples: int  # of an epoch

    def to_json(self) -> dict[str, Any]:
        """The identity's part of a saved state."""
        digests = {"sets": list(self.sets), "overlays": list(self.overlays)}
        return {name: getattr(self, name) for name in self.__slots__} | digests


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the stream: epoch, and places of it consumed by all ranks together."""

    epoch: int
    position: int


class StreamState:
    """The one state that a loader and all pipelines composed of it share.

    An iteration begins where the last whole epoch ended, or at the place that was loaded or set. An epoch is whole
    once its last batch is received. Leaving it before that and iterating again begins there again.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._start = Place(0, 0)
        self._received = self._start
        self._iteration = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._start.epoch

    def begin(self) -> tuple[int, Place]:
        """Begin an iteration; returns its number and where it starts."""
        self._iteration += 1
        self._received = self._start
        return self._iteration, self._start

    def received(self, iteration: int, position: int) -> None:
        """The consumer has all places before ``position``; only the newest iteration counts."""
        if iteration == self._iteration:
            self._received = replace(self._received, position=position)

    def finished(self, iteration: int) -> None:
        """The consumer has the whole epoch."""
        if iteration == self._iteration:
            self._start = self._received = Place(self._received.epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a loaded place within that epoch stays."""
        if epoch != self._start.epoch:
            self._start = self._received = Place(epoch, 0)
            # An iteration left behind no longer counts.
            self._iteration += 1

    def to_json(self) -> dict[str, Any]:
        """The state to save: small, JSON, good on any world size and batch size."""
        place = {"epoch": self._received.epoch, "position": self._received.position}
        return {"version": VERSION, **place, **self._identity.to_json()}

    def load_json(self, saved: Any) -> None:
        """Go on where a saved state stands.

        Raises:
            UsageError: It is no state, or one of another set, overlay, split, filter, seed or shuffle.
        """
        version = saved.get("version") if isinstance(saved, dict) else None
        if type(version) is not int or version != VERSION:
            got = version if isinstance(saved, dict) else type(saved).__name__
            raise UsageError("not a loader's state", expected=f"version {VERSION}", got=f"{got!r:.100}")
        self._refuse_other(saved)
        epoch: Any = saved.get("epoch")
        position: Any = saved.get("position")
        if not (_whole(epoch) and _whole(position) and position <= self._identity.samples):
            expected = f"epoch >= 0, position 0 to {self._identity.samples}"
            raise UsageError(
                "not a place", expected=expected, got=f"epoch {epoch!r:.40} position {position!r:.40}"
            )
        self._start = self._received = Place(epoch, position)
        self._iteration += 1

    def _refuse_other(self, saved: dict[str, Any]) -> None:
        mine = self._identity.to_json()
        other = [name for name in mine if name not in saved or not _same(saved[name], mine[name])]
        if other:
            raise UsageError(
                f"the state is of another loader, by its {', '.join(other)}",
                expected=f"{ {name: mine[name] for name in other} }"[:300],
                got=f"{ {name: saved.get(name) for name in other} }"[:300],
                do="Open the loader as it was when the state was saved, or start from the beginning.",
            )


def _same(one: Any, other: Any) -> bool:
    # True == 1 in Python, but shuffle=True is not a number.
    return type(one) is type(other) and bool(one == other)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0
