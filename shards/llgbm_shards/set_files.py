"""What stands in a set's directory against what the commit record lists: missing, extra, and the small files whole."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from blake3 import blake3

from llgbm_shards import ustar
from llgbm_shards.canonical import blake3_hex
from llgbm_shards.errors import DamageError, LlgbmError, StorageError
from llgbm_shards.findings import Finding, Kind
from llgbm_shards.record import CommitRecord, FileEntry, ShardEntry, shard_digest
from llgbm_shards.storage import TEMPORARY, open_regular, read_range, storage_errors

T = TypeVar("T")
_RETRY_S: Final = 0.05
_CHUNK: Final = 1 << 20
#: Directory whose every file is the record's business: another file there changes how texts are tokenized.
_TOKENIZER: Final = "tokenizer"


def finding_of(error: LlgbmError, shard: str) -> Finding:
    """An error as a finding: what could not be read is kept apart from what is damaged."""
    kind: Kind = "unreadable" if isinstance(error, StorageError) else "damage"
    key, member = (error.key, error.member) if isinstance(error, DamageError) else ("", "")
    facts = [f"expected {error.expected}" if error.expected else "", f"got {error.got}" if error.got else ""]
    what = error.what + (": " if any(facts) else "") + ", ".join(fact for fact in facts if fact)
    return Finding(
        shard=shard, key=key, member=member, what=f"{what}. {error.do}" if error.do else what, kind=kind
    )


def read_twice(read: Callable[[], T], name: str, findings: list[Finding]) -> T:
    """Read something; should it fail, once more. A second read that succeeds makes the failure transient.

    Raises:
        LlgbmError: The second read failed as well.
    """
    try:
        return read()
    except LlgbmError as error:
        if isinstance(error, StorageError):
            time.sleep(_RETRY_S)
        value = read()
        what = f"right when it was read again; the first time {finding_of(error, name).what}"
        findings.append(Finding(shard=name, what=what, kind="transient"))
        return value


def check_files(root: Path, record: CommitRecord) -> list[Finding]:
    """Index, skipped list and tokenizer files: small, so always whole."""
    findings: list[Finding] = []
    for entry in record.files:
        try:
            read_twice(lambda entry=entry: read_listed(root, entry), entry.name, findings)  # type: ignore[misc]
        except LlgbmError as error:
            findings.append(finding_of(error, entry.name))
    return findings


def read_listed(root: Path, entry: FileEntry) -> bytes:
    """The bytes of a file that the record lists.

    Raises:
        DamageError: It is missing, or not what was written.
        StorageError: It cannot be read.
    """
    path = root / entry.name
    with storage_errors(path):
        if not os.path.lexists(path):
            raise DamageError("missing", shard=entry.name)
    with open_regular(path) as fd:
        size = os.fstat(fd).st_size
        # Not read before its size is right: what stands there may be a hole of terabytes.
        data = read_range(fd, 0, size) if size == entry.size else b""
    if len(data) != entry.size:
        raise DamageError("wrong size", shard=entry.name, expected=f"{entry.size} bytes", got=f"{size} bytes")
    actual = blake3_hex(data)
    if actual != entry.digest:
        raise DamageError("damaged", shard=entry.name, expected=f"digest {entry.digest}", got=actual)
    return data


@dataclass(slots=True)
class Presence:
    """What stands in the directory of a set.

    Attributes:
        findings: Shards that are missing, of another size, or no files.
        there: Shards that can be read, whatever their size.
        extra: Files that are not of this set.
    """

    findings: list[Finding] = field(default_factory=list)
    there: list[ShardEntry] = field(default_factory=list)
    extra: list[Path] = field(default_factory=list)


def check_presence(root: Path, record: CommitRecord) -> Presence:
    """Look for the shards, and for what is none of the set's."""
    found = Presence()
    for entry in record.shards:
        try:
            status = (root / entry.name).stat()
        except FileNotFoundError:
            found.findings.append(
                Finding(shard=entry.name, what=f"missing, with its {entry.samples} samples")
            )
            continue
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            found.findings.append(Finding(shard=entry.name, what=what, kind="unreadable"))
            continue
        if not stat.S_ISREG(status.st_mode):
            found.findings.append(Finding(shard=entry.name, what="not a regular file"))
            continue
        found.there.append(entry)
        if status.st_size != entry.size:
            what = f"wrong size: expected {entry.size} bytes, got {status.st_size}"
            found.findings.append(Finding(shard=entry.name, what=what))
    with storage_errors(root):
        found.extra = list(_extra(root, record))
    return found


def _extra(root: Path, record: CommitRecord) -> Iterator[Path]:
    known = {entry.name for entry in record.shards} | {entry.name for entry in record.files}
    for path in sorted(root.iterdir()):
        # Also x.TAR and x.tar.bak: somebody's pattern for shards may match them.
        like_a_shard = ".tar" in (suffix.lower() for suffix in path.suffixes)
        if path.name not in known and (like_a_shard or path.name.startswith(TEMPORARY)):
            yield path
    if (root / _TOKENIZER).is_dir():
        for path in sorted((root / _TOKENIZER).rglob("*")):
            folder = path.is_dir() and not path.is_symlink()
            if not folder and path.relative_to(root).as_posix() not in known:
                yield path


def check_extra(root: Path, path: Path, record: CommitRecord, *, read: bool) -> Finding:
    """A file that is not of the set; with ``read`` a tar is read to tell whether it is a shard by another name."""
    name = path.relative_to(root).as_posix()
    if path.name.startswith(TEMPORARY):
        return Finding(shard=name, what="a file that a writer left unfinished")
    what = "a file that is not of this set"
    if path.parent == root:
        what = "a shard that is not of this set"
        if read and (holds := identify(path, record)):
            what += f": {holds}"
    return Finding(shard=name, what=what)


def identify(path: Path, record: CommitRecord) -> str:
    """Say whose bytes a tar holds: another shard of the set, or a shard of another set; "" when it is neither."""
    lines: list[tuple[str, int, str]] = []
    try:
        with open_regular(path) as fd:
            lines += (
                (member.name, member.size, _digest(fd, member)) for member in ustar.members(fd, path.name)
            )
    except (DamageError, StorageError):
        return ""
    owner = {entry.digest: entry.name for entry in record.shards}.get(shard_digest(lines))
    if owner is not None:
        return f"it holds the bytes of {owner}"
    return f"a sound shard of another set, which begins with {lines[0][0]}" if lines else ""


def _digest(fd: int, member: ustar.Member) -> str:
    digest = blake3()
    for offset in range(member.data_offset, member.data_offset + member.size, _CHUNK):
        digest.update(os.pread(fd, min(_CHUNK, member.data_offset + member.size - offset), offset))
    return digest.hexdigest()
