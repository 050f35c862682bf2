"""What stands in a set's directory against what the commit record lists: missing, extra, and the small files whole."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Final, TypeVar

from llgbm_shards.directory import Directory
from llgbm_shards.errors import DamageError, LlgbmError, StorageError
from llgbm_shards.findings import Finding, Kind
from llgbm_shards.held import member_lines
from llgbm_shards.names import PARITY, TEMPORARY, TOKENIZER_DIRECTORY
from llgbm_shards.record import CommitRecord, ShardEntry, read_listed, shard_digest
from llgbm_shards.storage import opened_file, storage_errors

T = TypeVar("T")
#: Pause before a failed read is tried once more.
RETRY_S: Final = 0.05


def finding_of(error: LlgbmError, shard: str) -> Finding:
    """An error as a finding: what could not be read is kept apart from what is damaged."""
    kind: Kind = "unreadable" if isinstance(error, StorageError) else "damage"
    key, member = (error.key, error.member) if isinstance(error, DamageError) else ("", "")
    what = f"{error.summary}. {error.do}" if error.do else error.summary
    return Finding(shard=shard, key=key, member=member, what=what, kind=kind)


def unreadable(shard: str, error: OSError) -> Finding:
    """The finding of what the system could not read."""
    return Finding(shard=shard, what=f"cannot be read: {error.strerror}", kind="unreadable")


def read_twice(read: Callable[[], T], name: str, findings: list[Finding]) -> T:
    """Read something; should it fail, once more. A second read that succeeds makes the failure transient."""
    try:
        return read()
    except LlgbmError as error:
        if isinstance(error, StorageError):
            time.sleep(RETRY_S)
        value = read()
        what = f"right when it was read again; the first time {finding_of(error, name).what}"
        findings.append(Finding(shard=name, what=what, kind="transient"))
        return value


def check_files(directory: Directory, record: CommitRecord) -> list[Finding]:
    """Index, skipped list and tokenizer files: small, so always whole. Parity files are not looked at here."""
    findings: list[Finding] = []
    for entry in (entry for entry in record.files if not PARITY.fullmatch(entry.name)):
        try:
            read_twice(lambda entry=entry: read_listed(directory, entry), entry.name, findings)  # type: ignore[misc]
        except LlgbmError as error:
            findings.append(finding_of(error, entry.name))
    return findings


@dataclass(slots=True)
class Presence:
    """What stands in the directory of a set."""

    #: Shards that are missing, of another size, or no files.
    findings: list[Finding] = field(default_factory=list)
    there: list[ShardEntry] = field(default_factory=list)  # shards that can be read, whatever their size
    extra: list[str] = field(default_factory=list)  # names of files that are not of this set


def check_presence(directory: Directory, record: CommitRecord) -> Presence:
    """Look for the shards, and for what is none of the set's."""
    presence = Presence()
    for entry in record.shards:
        try:
            status = os.stat(entry.name, dir_fd=directory.fd)
        except FileNotFoundError:
            missing = directory.missing(entry.name, f"missing, with its {entry.samples} samples")
            presence.findings.append(finding_of(missing, entry.name))
            continue
        except OSError as error:
            presence.findings.append(unreadable(entry.name, error))
            continue
        if not stat.S_ISREG(status.st_mode):
            presence.findings.append(Finding(shard=entry.name, what="not a regular file"))
            continue
        presence.there.append(entry)
        if status.st_size != entry.size:
            what = f"wrong size: expected {entry.size} bytes, got {status.st_size}"
            presence.findings.append(Finding(shard=entry.name, what=what))
    with storage_errors(directory.path):
        presence.extra = list(_extra(directory, record))
    return presence


def _extra(directory: Directory, record: CommitRecord) -> Iterator[str]:
    known = {entry.name for entry in record.shards} | {entry.name for entry in record.files}
    for name in sorted(os.listdir(directory.fd)):  # noqa: PTH208 - a Path knows no descriptor
        # Also x.TAR and x.tar.bak: somebody's pattern for shards may match them.
        like_a_shard = ".tar" in (suffix.lower() for suffix in PurePath(name).suffixes)
        if name not in known and (like_a_shard or name.startswith(TEMPORARY) or PARITY.fullmatch(name)):
            yield name
    yield from sorted(name for name in directory.files_below(TOKENIZER_DIRECTORY) if name not in known)


def check_extra(directory: Directory, name: str, record: CommitRecord, *, read: bool) -> Finding:
    """A file that is not of the set; with ``read`` a tar is read to tell whether it is a shard by another name."""
    if PurePath(name).name.startswith(TEMPORARY):
        return Finding(shard=name, what="a file that a writer left unfinished")
    what = "a file that is not of this set"
    if PARITY.fullmatch(name):
        what = "a parity file that is not of this set"
    elif "/" not in name:
        what = "a shard that is not of this set"
        if read and (holds := identify(directory, name, record)):
            what += f": {holds}"
    return Finding(shard=name, what=what)


def identify(directory: Directory, name: str, record: CommitRecord) -> str:
    """Say whose bytes a tar holds: another shard of the set, or a shard of another set; "" when it is neither."""
    lines: list[tuple[str, int, str]] = []
    try:
        with storage_errors(Path(name)), opened_file(name, dir_fd=directory.fd) as fd:
            lines += member_lines(fd, name)
    except (DamageError, StorageError):
        return ""
    owner = {entry.digest: entry.name for entry in record.shards}.get(shard_digest(lines))
    if owner is not None:
        return f"it holds the bytes of {owner}"
    return f"a sound shard of another set, which begins with {lines[0][0]}" if lines else ""
