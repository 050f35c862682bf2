"""shardset.json: the commit record, written last, that pins every other file of a set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from llgbm_shards.arguments import shown
from llgbm_shards.canonical import blake3_hex, dump_json, load_json
from llgbm_shards.directory import Directory
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.layout import Layout, Module
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import DIGEST, PACK_DIRECTORY, RECORD_NAME
from llgbm_shards.schema import check_record
from llgbm_shards.storage import opened_file, read_file, read_range, storage_errors
from llgbm_shards.texts import ConditionSpec

FORMAT: Final = "llgbm-shards/1"
MAX_RECORD_BYTES: Final = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard in the record: digest is BLAKE3 over its member lines, see :func:`shard_digest`."""

    name: str
    split: str
    samples: int
    size: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One other file in the record: POSIX path relative to the set, size, BLAKE3-256."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What ``shardset.json`` says."""

    layout: Layout
    base: str = ""  # of an overlay: digest of the set whose samples it has anew; "" of a plain set
    members: tuple[str, ...]  # fields of every sample, in tar order
    texts: dict[str, Any]  # those of a ConditionSpec; forms is empty when the set has no texts
    delta_width: int  # hidden width of the deltas, 0 when the set has none
    options: dict[str, Any]  # the build options that shaped the content
    shards: tuple[ShardEntry, ...]  # train before val, by number
    files: tuple[FileEntry, ...]  # index.parquet, skipped.json and the text tokenizer's files
    digest: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """All fields but the digest."""
        return {
            **self.about(),
            "shards": list(map(asdict, self.shards)),
            "files": list(map(asdict, self.files)),
        }

    def about(self) -> dict[str, Any]:
        """All fields but the lists of files and the digest; the index carries a copy, so that they can be restored."""
        return {
            "format": FORMAT,
            "base": self.base,
            "options": self.options,
            "dtype": self.layout.dtype,
            "rank": self.layout.rank,
            "chunk": self.layout.chunk,
            "token_order": self.layout.token_order,
            "members": list(self.members),
            "modules": [module.to_json() for module in self.layout.modules],
            "texts": self.texts,
            "delta_width": self.delta_width,
        }

    def to_bytes(self) -> bytes:
        """The canonical file."""
        return _sealed(self.to_json())

    def file(self, name: str) -> FileEntry:
        """The entry of a file by name.

        Raises:
            DamageError: The record does not list it.
        """
        for entry in self.files:
            if entry.name == name:
                return entry
        raise DamageError("the commit record does not list this file", shard=name)


def parse_record(data: bytes) -> CommitRecord:
    """Read a commit record and prove it: canonical bytes, known format, its own digest.

    Raises:
        DamageError: Any bit of it is not what was written.
    """
    try:
        fields = load_json(data, where=RECORD_NAME, max_bytes=MAX_RECORD_BYTES)
        if not isinstance(fields, dict) or dump_json(fields) != data:
            raise HeaderError("not canonical JSON", where=RECORD_NAME)
        digest = fields.pop("digest", None)
        if fields.get("format") != FORMAT:
            got = f"{fields.get('format')!r:.40}"
            raise HeaderError("unknown format", where=RECORD_NAME, expected=FORMAT, got=got)
        actual = blake3_hex(dump_json(fields))
        if digest != actual:
            expected = f"digest {digest!s:.64}"
            raise HeaderError("edited or damaged", where=RECORD_NAME, expected=expected, got=actual)
        check_record(fields)
        _check_members(fields)
        return _from_json(fields, actual)
    except HeaderError as error:
        place = "" if error.where in ("", RECORD_NAME) else f"{error.where}: "
        raise error.as_(DamageError, f"{place}{error.what}", shard=RECORD_NAME) from error


def _check_members(fields: dict[str, Any]) -> None:
    """The member list is that of a plain set, or of an overlay, and agrees with texts and delta_width."""
    with_texts = fields["texts"].get("forms") != []
    if with_texts:
        ConditionSpec.from_json(fields["texts"], where="texts")
    optional = {"texts": with_texts, "delta": fields["delta_width"] > 0}
    expected = [name for name in SUFFIX if optional.get(name, not fields["base"] or name == "json")]
    if fields["members"] != expected or expected == ["json"]:
        what, got = "members do not fit texts and delta_width", f"{fields['members']!s:.120}"
        raise HeaderError(what, where="members", expected=f"{expected}", got=got)


def record_of(
    about: dict[str, Any], shards: Iterable[ShardEntry], files: Iterable[FileEntry]
) -> CommitRecord:
    """The record of a set, from what :meth:`CommitRecord.about` gave and the lists of its files.

    Raises:
        DamageError: A field is missing or impossible.
    """
    by_name = sorted(files, key=lambda entry: entry.name)
    return parse_record(
        _sealed({**about, "shards": list(map(asdict, shards)), "files": list(map(asdict, by_name))})
    )


def _sealed(fields: dict[str, Any]) -> bytes:
    """The canonical file of a record's fields: they and their digest."""
    return dump_json({**fields, "digest": blake3_hex(dump_json(fields))})


def checked_digest(text: str) -> str:
    """A digest that somebody gave, in the spelling of the record.

    Raises:
        UsageError: It is none: then it says nothing of the set.
    """
    digest = text.strip().lower() if isinstance(text, str) else ""
    if not DIGEST.fullmatch(digest):
        got = shown(text)[:80]
        raise UsageError("not a digest", where="expect_digest", expected="64 hex digits", got=got)
    return digest


def shard_digest(members: Iterable[tuple[str, int, str]]) -> str:
    """BLAKE3 over a line ``name TAB size TAB hex digest NEWLINE`` per member, in tar order."""
    digest = blake3()
    for name, size, member_digest in members:
        digest.update(f"{name}\t{size}\t{member_digest}\n".encode())
    return digest.hexdigest()


def _from_json(fields: dict[str, Any], digest: str) -> CommitRecord:
    layout = Layout(
        **{name: fields[name] for name in ("dtype", "rank", "chunk", "token_order")},
        modules=tuple(Module.from_json(row) for row in fields["modules"]),
    )
    return CommitRecord(
        layout=layout,
        **{name: fields[name] for name in ("base", "texts", "delta_width", "options")},
        members=tuple(fields["members"]),
        shards=tuple(ShardEntry(**row) for row in fields["shards"]),
        files=tuple(FileEntry(**row) for row in fields["files"]),
        digest=digest,
    )


def read_record(directory: Directory) -> CommitRecord:
    """The commit record of the set in a directory.

    Raises:
        DamageError: There is none (the set is unfinished), or it is damaged.
        StorageError: It cannot be read.
    """
    if not directory.holds(RECORD_NAME):
        raise _no_record(directory.path)
    return parse_record(read_file(Path(RECORD_NAME), max_bytes=MAX_RECORD_BYTES, dir_fd=directory.fd))


def _no_record(path: Path) -> DamageError:
    if (path / PACK_DIRECTORY).is_dir():
        what = "the set is unfinished: its build has not committed"
        do = "Run the same build command again to finish it."
    elif any(path.glob("*.tar")):
        what = "the commit record is missing"
        do = "Copy it again, or run `llgbm-pack repair` with --expect-digest."
    else:
        what = "not a shard set"
        do = "Name the directory that a build wrote."
    return DamageError(what, shard=str(path), expected=RECORD_NAME, got="no such file", do=do)


def read_listed(directory: Directory, entry: FileEntry) -> bytes:
    """The bytes of a file that the record lists.

    Raises:
        DamageError: It is missing, or not what was written; or the set was replaced.
        StorageError: It cannot be read.
    """
    with listed_file(directory, entry) as fd:
        data = read_range(fd, 0, entry.size)
    refuse_other_digest(entry, blake3_hex(data))
    return data


@contextlib.contextmanager
def listed_file(directory: Directory, entry: FileEntry) -> Iterator[int]:
    """The descriptor of a file that the record lists, of the right size, for a block; errors as :func:`read_listed`."""
    if not directory.holds(entry.name):
        raise directory.missing(entry.name)
    path = Path(entry.name)
    with storage_errors(path), opened_file(path, dir_fd=directory.fd) as fd:
        size = os.fstat(fd).st_size
        # Not read before its size is right: what stands there may be a hole of terabytes.
        if size != entry.size:
            got = f"{size} bytes"
            raise DamageError("wrong size", shard=entry.name, expected=f"{entry.size} bytes", got=got)
        yield fd


def refuse_other_digest(entry: FileEntry, actual: str) -> None:
    """Raises DamageError unless a listed file's bytes have the recorded digest."""
    if actual != entry.digest:
        raise DamageError("damaged", shard=entry.name, expected=f"digest {entry.digest}", got=actual)
