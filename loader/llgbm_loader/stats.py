"""What a loader has delivered, and how long its consumer waited for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from llgbm_shards.errors import DamageError

_log = logging.getLogger("llgbm_loader")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats:
    """A loader's figures since it was made."""

    epochs: int  # whole ones delivered
    batches: int  # delivered
    samples: int  # valid rows delivered
    padding_rows: int  # rows that filled up last batches
    invalid_rows: int  # rows of damaged samples that were let pass; one more each time a sample comes
    damage: tuple[str, ...]  # what was wrong with each damaged sample, once, as it was first met
    bytes_read: int  # from shards
    seconds: float  # within iterations
    waited_s: float  # of these, while the consumer waited for a batch

    @property
    def samples_per_s(self) -> float:
        """Valid rows a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes read a second."""
        return self.bytes_read / self.seconds if self.seconds else 0.0

    @property
    def waited_share(self) -> float:
        """Share of the time that the consumer waited, 0 to 1."""
        return self.waited_s / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True, slots=True)
class Counter:
    """Counts for :class:`LoaderStats`."""

    epochs: int = 0
    batches: int = 0
    samples: int = 0
    padding_rows: int = 0
    invalid_rows: int = 0
    #: By shard and key: a sample that comes again in a later epoch is no further damage.
    damage: dict[tuple[str, str], str] = field(default_factory=dict)
    bytes_read: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0

    def note(self, damage: Iterable[DamageError]) -> None:
        """Note damaged samples that were met."""
        for error in damage:
            self.damage.setdefault((error.shard, error.key), str(error))

    def add(self, *, rows: int, padding: int, invalid: int, nbytes: int) -> None:
        """Count a delivered batch of ``rows`` rows."""
        self.batches += 1
        self.samples += rows - padding - invalid
        self.padding_rows += padding
        self.invalid_rows += invalid
        self.bytes_read += nbytes

    def snapshot(self) -> LoaderStats:
        """The figures by now."""
        return LoaderStats(**{**asdict(self), "damage": tuple(self.damage.values())})


def log_epoch(epoch: int, before: LoaderStats, after: LoaderStats) -> None:
    """One log line for an epoch, from the figures before and after it."""
    seconds = max(after.seconds - before.seconds, 1e-9)
    samples, nbytes = after.samples - before.samples, after.bytes_read - before.bytes_read
    _log.info(
        "epoch %d: %d samples, %.1f MB in %.2f s (%.1f samples/s, %.1f MB/s), waited %.0f %%, %d invalid rows",
        epoch,
        samples,
        nbytes / 1e6,
        seconds,
        samples / seconds,
        nbytes / 1e6 / seconds,
        100 * (after.waited_s - before.waited_s) / seconds,
        after.invalid_rows - before.invalid_rows,
    )
