"""ShardSet: a committed set, opened for reading. Opening proves the commit record and the index."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa

from llgbm_shards.arguments import as_index, is_one_of, local_path, require, shown
from llgbm_shards.canonical import blake3_hex
from llgbm_shards.directory import Directory, replaced, require_set_directory
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.extents import PARTS, MemberExtent, checked_extents, shard_extents
from llgbm_shards.held import HeldShard, Identity, identities, identity_in
from llgbm_shards.index import decode_index, index_schema, refuse_many_rows
from llgbm_shards.layout import Layout
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import INDEX_NAME, RECORD_NAME
from llgbm_shards.record import CommitRecord, checked_digest, read_listed, read_record
from llgbm_shards.sample import Sample, decode_sample
from llgbm_shards.schema import SAMPLE, faults
from llgbm_shards.storage import read_range, storage_errors


class ShardSet:
    """A committed shard set. It stays the one that was opened, whatever takes its directory's name or its files' places.

    Args:
        path: Directory of the set.
        expect_digest: Digest that ``shardset.json`` must have, as printed at the end of a build.

    Attributes:
        path: The directory as it was named.
        directory: The directory that is held open.
        record: The commit record.
        shards: The shards by name, in the record's order.

    Raises:
        DamageError: No commit record (an unfinished set), or the record or the index is damaged, or the set is
            replaced at this moment.
        UsageError: The digest is not the expected one, or what is expected is no digest.
        StorageError: Something cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, expect_digest: str | None = None) -> None:
        self.path = local_path("path", path)
        require_set_directory(self.path)
        self.directory = Directory(self.path)
        self.record, there = _record_and_identities(self.directory)
        if expect_digest is not None and checked_digest(expect_digest) != self.record.digest:
            raise UsageError(
                "another set than expected",
                where=str(path),
                expected=f"digest {expect_digest}",
                got=self.record.digest,
                do="Use the set that was pinned, or pin this one's digest.",
            )
        self.shards = {
            entry.name: HeldShard(self.directory, entry, there.get(entry.name))
            for entry in self.record.shards
        }

    @property
    def layout(self) -> Layout:
        """dtype, rank, chunk, token order and module table."""
        return self.record.layout

    @property
    def digest(self) -> str:
        """Digest of the commit record; it pins every byte of the set."""
        return self.record.digest

    def require_weights(self) -> None:
        """Raises UsageError for an overlay, which has none."""
        if self.record.base:
            do = f"Name the set it was made of, digest {self.record.base}."
            raise UsageError(
                "an overlay has no weights", where=str(self.path), expected="a set with weights", do=do
            )

    @functools.cached_property
    def _index_bytes(self) -> bytes:
        try:
            data = read_listed(self.directory, self.record.file(INDEX_NAME))
        except DamageError as error:
            what = f"not the index that was committed: {error.what}"
            do = "Run `llgbm-pack repair`, or copy the set again."
            raise error.as_(DamageError, what, shard=INDEX_NAME, do=do) from error
        refuse_many_rows(data, len(self))
        return data

    def index(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The index, all columns or some; row order is the sample number.

        Raises:
            UsageError: Not a list of columns that the index has.
            DamageError: The index is not what was written.
        """
        if columns is not None:
            self._refuse_columns(columns)
        return decode_index(self._index_bytes, self.record.members, columns=columns)

    def _refuse_columns(self, columns: Any) -> None:
        known = index_schema(self.record.members).names
        listed = isinstance(columns, Collection) and not isinstance(columns, str | bytes)
        right = listed and all(is_one_of(name, known) for name in columns)
        require(right, "columns", f"a list of some of {', '.join(known)}", columns)

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.record.shards)

    @functools.cached_property
    def keys(self) -> list[str]:
        """Keys in sample-number order."""
        keys: list[str] = self.index(["key"]).column("key").to_pylist()
        return keys

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def number(self, sample: str | SupportsIndex) -> int:
        """Sample number of a key (or of a number, checked).

        Raises:
            UsageError: The set has no such sample.
        """
        number = self._number.get(sample) if isinstance(sample, str) else as_index(sample)
        if number is None or not 0 <= number < len(self):
            do = "`inspect` lists keys."
            raise UsageError("no such sample", where=str(self.path), got=shown(sample), do=do)
        return number

    def extents(self, sample: str | SupportsIndex) -> list[MemberExtent]:
        """The members of one sample, in tar order.

        Raises:
            UsageError: The set has no such sample.
            DamageError: The index does not agree with the record.
        """
        row = self.places.slice(self.number(sample), 1).to_pylist()[0]
        shard = self.shards.get(row["shard"])
        return checked_extents(row, self.record.members, shard.entry if shard else None)

    def shard_extents(self, shard: str) -> Iterator[list[MemberExtent]]:
        """The members of every sample of one shard, sample by sample in tar order.

        Raises:
            UsageError: The set has no shard of this name.
            DamageError: The index does not agree with the record on the shard.
        """
        entry = self._shard(shard).entry
        rows = self.places.slice(self._first_sample[shard], entry.samples).to_pylist()
        return shard_extents(rows, self.record.members, entry)

    def _shard(self, name: Any) -> HeldShard:
        right = isinstance(name, str) and name in self.shards
        require(right, "shard", f"the name of one of the {len(self.shards)} shards of {self.path}", name)
        return self.shards[name]

    @functools.cached_property
    def places(self) -> pa.Table:
        """Where every member stands (key, shard, offset, sizes, digests); parsed once."""
        columns = [f"{field}.{part}" for field in self.record.members for part in PARTS]
        table = self.index(["key", "shard", "offset", *columns])
        if len(table) != len(self):
            expected, got = f"{len(self)} samples", f"{len(table)} rows"
            raise DamageError("index and record disagree", shard=INDEX_NAME, expected=expected, got=got)
        return table

    @functools.cached_property
    def _first_sample(self) -> dict[str, int]:
        """Shard name -> number of its first sample: the index is in the record's order."""
        starts = accumulate((entry.samples for entry in self.record.shards), initial=0)
        return {entry.name: first for entry, first in zip(self.record.shards, starts, strict=False)}

    @contextlib.contextmanager
    def open_shard(self, name: str, *, prove: bool = True) -> Iterator[int]:
        """The descriptor of a shard, for a block.

        Args:
            name: The shard.
            prove: As for :meth:`HeldShard.open`.

        Raises:
            UsageError: The set has no such shard.
            DamageError: It is missing, or the set was replaced.
            StorageError: It cannot be opened or read.
        """
        shard = self._shard(name)
        with storage_errors(Path(name)):
            fd = shard.open(prove=prove)
            try:
                yield fd
            finally:
                os.close(fd)

    def read_member(self, extent: MemberExtent) -> bytes:
        """The verified bytes of one member.

        Raises:
            UsageError: Not an extent.
            DamageError: They are not what was written.
            StorageError: They cannot be read.
        """
        require(isinstance(extent, MemberExtent), "extent", "a MemberExtent, as extents() gives them", extent)
        member = SUFFIX[extent.field]
        try:
            with self.open_shard(extent.shard, prove=False) as fd:
                data = read_range(fd, extent.offset, extent.size)
                if (digest := blake3_hex(data)) == extent.blake3:
                    return data
                self.shards[extent.shard].prove(fd)
        except DamageError as error:
            raise error.at(extent.key, member) from error
        what = "truncated" if len(data) < extent.size else "damaged"
        expected, got = f"{extent.size} bytes, digest {extent.blake3}", f"{len(data)} bytes, digest {digest}"
        raise DamageError(what, shard=extent.shard, expected=expected, got=got).at(extent.key, member)

    def read_sample(self, sample: str | SupportsIndex) -> Sample:
        """One sample, verified and decoded.

        Raises:
            UsageError: The set has no such sample.
            DamageError: It is not what was written, or its json is not the format's.
            StorageError: It cannot be read.
        """
        extents = self.extents(sample)
        data = {extent.field: self.read_member(extent) for extent in extents}
        key = extents[0].key
        try:
            decoded = decode_sample(key, data, self.record)
        except HeaderError as error:
            raise error.as_(DamageError, shard=extents[0].shard, key=key, member=error.where) from error
        for fault in faults(decoded.json, SAMPLE, "json", ""):
            raise DamageError(str(fault), shard=extents[0].shard, key=key, member=SUFFIX["json"])
        return decoded


def _record_and_identities(directory: Directory) -> tuple[CommitRecord, dict[str, Identity]]:
    """The commit record, and the identities of the shards that were there before it was read.

    Raises:
        DamageError: As for :func:`read_record`; or another record took its place meanwhile.
    """
    before = identity_in(directory, RECORD_NAME)
    there = identities(directory)
    record = read_record(directory)
    if before != identity_in(directory, RECORD_NAME):
        raise replaced(RECORD_NAME, "one file while the set is opened", "another one")
    return record, there
