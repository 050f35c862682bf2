"""Put samples back by parity, without the zoo: each is proven by its digests before anything is replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llgbm_shards import ustar
from llgbm_shards.errors import DamageError, RepairError
from llgbm_shards.names import parity_name
from llgbm_shards.parity import (
    Extents,
    is_whole,
    parity_blocks,
    parity_groups,
    recovered_record,
    stretch,
    write_parity,
)
from llgbm_shards.record import FileEntry, ShardEntry, shard_digest
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import new_file, open_file, opened_file, read_range, storage_errors, write_all

#: So many keys are named in one message; `check` lists all.
_NAMED: Final = 20


class ParityRestorer:
    """Restores shards of a set whose index is sound from what is left of them and of their parity.

    Without parity it puts back what is damaged outside of samples: the end of a shard.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        self._set = shard_set
        self.groups = parity_groups(shard_set.record)  # P, 0 without parity

    def restore(self, entry: ShardEntry) -> None:
        """Put back every sample of a shard that parity gives; the others stay as they are.

        Raises:
            RepairError: Some cannot be put back; names them, and says which were.
            StorageError: Shard or parity cannot be read, or the shard not written; nothing was changed.
        """
        samples = list(self._set.shard_extents(entry.name))
        _refuse_another(entry, samples)
        path = self._set.path / entry.name
        with storage_errors(path), _opened(path) as shard, _opened_parity(path) as parity:
            source = _Source(shard, parity, samples, self.groups)
            lost = [number for number in range(len(samples)) if source.whole(number) is None]
            gone = {number for number in lost if source.recovered(number) is None}
            back = [number for number in lost if number not in gone]
            if back or not lost:
                _write(path, entry, source, gone)
        if gone:
            keys = [sample[0].key for sample in samples]
            raise self._lost(entry, [keys[n] for n in sorted(gone)], [keys[n] for n in back])

    def _lost(self, entry: ShardEntry, gone: Sequence[str], back: Sequence[str]) -> RepairError:
        why = "beyond what parity gives" if self.groups else "and the set has no parity"
        what = f"{len(gone)} of {entry.samples} samples are lost {why}: {_named(gone)}"
        what += f"; {len(back)} were put back: {_named(back)}" if back else ""
        record = self._set.record
        also = [name for name in ("deltas", "texts") if record.options.get(name)]
        given = " ".join(f"--{name} DIR" for name in ("base" if record.base else "zoo", *also))
        return RepairError(what, where=entry.name, do=f"Give what it was packed from: {given}.")

    def restore_parity(self, file: FileEntry, shard: str) -> None:
        """Make a parity file anew from its shard, which is sound.

        Raises:
            RepairError: It comes out as another one than was committed.
            StorageError: The shard cannot be read, or the file not written.
        """
        samples = list(self._set.shard_extents(shard))
        path = self._set.path / file.name
        try:
            with storage_errors(Path(shard)), opened_file(path.with_name(shard)) as fd:
                write_parity(path, parity_blocks(fd, samples, self.groups), file.size, file)
        except DamageError as error:
            raise error.as_(RepairError, where=file.name) from error


@dataclass(frozen=True, slots=True)
class _Source:
    """What is left of a shard and of its parity; None where there is no such file."""

    shard: int | None
    parity: int | None
    samples: Sequence[Extents]
    groups: int

    def raw(self, number: int) -> bytes:
        """What stands where the record of a sample should."""
        start, size = stretch(self.samples[number])
        return b"" if self.shard is None else read_range(self.shard, start, size)

    def whole(self, number: int) -> bytes | None:
        """The record of a sample, as it stands in the shard; None when that is damaged or cannot be read."""
        try:
            record = self.raw(number)
        except OSError:
            return None
        return record if is_whole(record, self.samples[number]) else None

    def recovered(self, number: int) -> bytes | None:
        """The same by parity."""
        if self.parity is None or not self.groups:
            return None
        try:
            return recovered_record(self.shard, self.parity, self.samples, self.groups, number)
        except OSError:
            return None


def _write(path: Path, entry: ShardEntry, source: _Source, gone: Collection[int]) -> None:
    """Write the shard anew: whole and recovered samples proven, what stands there of the others."""
    short = False
    with storage_errors(path, needed=entry.size), new_file(path) as fd:
        for number, sample in enumerate(source.samples):
            record = (
                source.raw(number) if number in gone else source.whole(number) or source.recovered(number)
            )
            if record is None:
                what, do = "a sample changed while its shard was put back", "Run the repair again."
                raise RepairError(what, where=entry.name, got=sample[0].key, do=do)
            start, size = stretch(sample)
            short |= len(record) < size
            os.lseek(fd, start, os.SEEK_SET)
            write_all(fd, [record])
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)
        # Where bytes are missing the end is left out, so that the shard's size tells that it is not whole.
        if not short:
            write_all(fd, [ustar.END])


def _refuse_another(entry: ShardEntry, samples: Sequence[Extents]) -> None:
    lines = ((extent.name, extent.size, extent.blake3) for sample in samples for extent in sample)
    if (got := shard_digest(lines)) != entry.digest:
        what = "the index is of another shard than was committed"
        raise RepairError(what, where=entry.name, expected=f"digest {entry.digest}", got=got)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The descriptor of a file for a block, None when there is none.

    Raises:
        OSError: It cannot be opened.
    """
    if not path.exists():
        yield None
        return
    with opened_file(path) as fd:
        yield fd


@contextlib.contextmanager
def _opened_parity(shard: Path) -> Iterator[int | None]:
    """The same of a shard's parity file, None too when that cannot be opened."""
    path = shard.with_name(parity_name(shard.name))
    try:
        fd = open_file(path)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _named(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{rest}"
