"""repair: put back what of a set is damaged or missing, to the bit, or say what keeps it from being put back."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from llgbm_pack.packing.lock import builder_lock, remove_lock
from llgbm_pack.upkeep.repair_files import (
    known_skipped,
    restore_index,
    restore_record,
    restore_skipped,
    restore_tokenizer_file,
    saved_tokenizer,
)
from llgbm_pack.upkeep.repair_parity import ParityRestorer
from llgbm_pack.upkeep.repair_shards import RepairOptions, ShardRestorer
from llgbm_shards.check_parity import parity_entries
from llgbm_shards.check_set import check
from llgbm_shards.directory import Directory, require_set_directory
from llgbm_shards.errors import (
    DamageError,
    DiskFullError,
    LockedError,
    RepairError,
    StorageError,
    UsageError,
)
from llgbm_shards.findings import CheckReport, Finding
from llgbm_shards.names import (
    INDEX_NAME,
    PACK_DIRECTORY,
    PLAN_NAME,
    RECORD_NAME,
    SKIPPED_NAME,
    TOKENIZER_DIRECTORY,
    parity_name,
)
from llgbm_shards.out_directory import refuse_no_set
from llgbm_shards.record import CommitRecord, ShardEntry, read_record
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import remove_temporary, storage_errors

P = ParamSpec("P")
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that was not put back, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """Result of a repair."""

    out: str  # the set, as the user named it
    digest: str  # of the commit record; "" when that could not be put back
    restored: tuple[str, ...]  # files put back, each with the digest it had
    refused: tuple[Refusal, ...]  # files that are still damaged or missing
    left: tuple[Finding, ...]  # what a repair does not touch: files that are not of the set
    failed: bool  # something could not be read or written
    seconds: float  # wall time

    @property
    def exit_code(self) -> int:
        """0: the set is sound now; 1: something is left that is not; 3: for it could not be read or written."""
        return 3 if self.failed else int(bool(self.refused or self.left))

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


def repair(options: RepairOptions, *, say: Say = lambda _: None) -> RepairReport:
    """Put back the damaged and missing files of a set; sound files are never written.

    Raises:
        UsageError: There is no set, or it is unfinished, or it is not the expected one.
        StorageError: The set cannot be read, or is locked; or the disk is full.
    """
    start = time.monotonic()
    require_set_directory(options.out)
    refuse_no_set(options.out)
    if (options.out / PACK_DIRECTORY / PLAN_NAME).exists():
        do = "Run the build command again to finish it."
        raise UsageError("the set is unfinished", where=str(options.out), do=do)
    with builder_lock(options.out / PACK_DIRECTORY):
        try:
            run = _Repair(options, say)
            run.run()
        finally:
            remove_lock(options.out / PACK_DIRECTORY)
    return RepairReport(
        out=str(options.out),
        digest=run.digest,
        restored=tuple(run.restored),
        refused=tuple(run.refused),
        left=tuple(run.left),
        failed=run.failed,
        seconds=time.monotonic() - start,
    )


class _Repair:
    """The state of one repair."""

    def __init__(self, options: RepairOptions, say: Say) -> None:
        self._options, self._say = options, say
        self.digest = ""
        self.restored: list[str] = []
        self.refused: list[Refusal] = []
        self.left: list[Finding] = []
        self.failed = False

    def run(self) -> None:
        record = self._record()
        if record is None:
            return
        self.digest = record.digest
        self._remove_unfinished()
        self._say(f"checking {len(record.shards)} shards")
        report = check(self._options.out, level="full")
        damaged = {finding.shard for finding in report.findings if finding.kind != "transient"}
        self._tokenizer(record, damaged)
        index_sound = INDEX_NAME not in damaged
        by_plan = ShardRestorer(self._options, record, damaged)
        # Before the shards where it can be: what the build skipped claimed its delta.
        if index_sound and SKIPPED_NAME in damaged:
            self._skipped(record, by_plan)
        restorer = self._by_index(record, damaged) if index_sound else by_plan
        by_parity = ParityRestorer(ShardSet(self._options.out)) if index_sound else None
        for entry in (entry for entry in record.shards if entry.name in damaged):
            self._attempt(entry.name, self._shard, entry, by_parity, restorer, self._options.source(record))
        if not index_sound:
            self._index(record)
            if SKIPPED_NAME in damaged:
                self._skipped(record, by_plan)
        self._parity(record, damaged)
        self._leftovers(report, record)

    def _remove_unfinished(self) -> None:
        tokenizer = self._options.out / TOKENIZER_DIRECTORY
        with storage_errors(self._options.out):
            remove_temporary(self._options.out)
            if tokenizer.is_dir() and not tokenizer.is_symlink():
                remove_temporary(tokenizer)

    def _record(self) -> CommitRecord | None:
        try:
            record = read_record(Directory(self._options.out))
        except (DamageError, StorageError) as error:
            restored = self._attempt(RECORD_NAME, restore_record, self._options)
            self.failed |= isinstance(error, StorageError) and restored is None
            return restored
        if self._options.expect_digest not in (None, record.digest):
            raise UsageError(
                "another set than expected",
                where=str(self._options.out),
                expected=f"digest {self._options.expect_digest}",
                got=record.digest,
            )
        return record

    def _tokenizer(self, record: CommitRecord, damaged: set[str]) -> None:
        saved = functools.cache(saved_tokenizer)
        for entry in record.files:
            if entry.name in damaged and entry.name.startswith(f"{TOKENIZER_DIRECTORY}/"):
                self._attempt(entry.name, restore_tokenizer_file, self._options, entry, saved)

    def _by_index(self, record: CommitRecord, damaged: set[str]) -> ShardRestorer:
        rows = ShardSet(self._options.out).index().to_pylist()
        lost = any(refusal.name == SKIPPED_NAME for refusal in self.refused)
        skipped = None if lost else known_skipped(self._options.out)
        return ShardRestorer(self._options, record, damaged, rows, skipped)

    def _shard(
        self,
        entry: ShardEntry,
        by_parity: ParityRestorer | None,
        by_source: ShardRestorer,
        source: Path | None,
    ) -> None:
        """Put one shard back by parity, and what that does not give by what the set was packed from."""
        if by_parity is not None and (by_parity.groups or source is None):
            self._say(f"putting {entry.name} back by parity")
            try:
                by_parity.restore(entry)
            except (RepairError, StorageError):
                if source is None:
                    raise
            else:
                return
        self._say(f"packing {entry.name} again")
        by_source.restore(entry)

    def _parity(self, record: CommitRecord, damaged: set[str]) -> None:
        """Make damaged parity files anew; last, for they are made of sound shards and a sound index."""
        refused = {refusal.name for refusal in self.refused}
        lost = {entry.name: entry for entry in parity_entries(record) if entry.name in damaged}
        restorer = ParityRestorer(ShardSet(self._options.out)) if lost and INDEX_NAME not in refused else None
        for shard in (entry.name for entry in record.shards if parity_name(entry.name) in lost):
            file = lost[parity_name(shard)]
            if restorer is None or shard in refused:
                reason = f"it can only be made of {shard} and {INDEX_NAME}, and these are not sound"
                self.refused.append(Refusal(file.name, reason))
            else:
                self._say(f"making {file.name} of {shard}")
                self._attempt(file.name, restorer.restore_parity, file, shard)

    def _index(self, record: CommitRecord) -> None:
        broken = {refusal.name for refusal in self.refused} & {entry.name for entry in record.shards}
        if broken:
            reason = (
                f"it can only be rebuilt from sound shards, and these are not: {', '.join(sorted(broken))}"
            )
            self.refused.append(Refusal(INDEX_NAME, reason))
        else:
            self._attempt(INDEX_NAME, restore_index, self._options.out, record)

    def _skipped(self, record: CommitRecord, restorer: ShardRestorer) -> None:
        if any(refusal.name == INDEX_NAME for refusal in self.refused):
            self.refused.append(Refusal(SKIPPED_NAME, f"it can only be rebuilt with {INDEX_NAME}"))
            return
        packed = set(ShardSet(self._options.out).index(["checkpoint"]).column("checkpoint").to_pylist())
        self._attempt(SKIPPED_NAME, restore_skipped, self._options.out, record, restorer, packed)

    def _attempt(self, name: str, restore: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What restoring a file gives; what keeps it from being restored is noted, and the others are gone on with."""
        if (self._options.out / name).is_dir():
            self.refused.append(Refusal(name, "a directory stands in its place; move it away"))
            return None
        try:
            restored = restore(*args, **kwargs)
        except (LockedError, DiskFullError):
            raise
        except (
            RepairError,
            UsageError,
            StorageError,
            DamageError,
        ) as error:  # DamageError: of an overlay's base
            self.failed |= isinstance(error, StorageError)
            self.refused.append(Refusal(name, str(error).removeprefix(f"{name}: ")))
            return None
        self.restored.append(name)
        return restored

    def _leftovers(self, report: CheckReport, record: CommitRecord) -> None:
        ours = {entry.name for entry in record.shards} | {entry.name for entry in record.files}
        self.left = [
            finding
            for finding in report.findings
            if finding.shard not in ours and finding.shard != RECORD_NAME and finding.kind != "transient"
        ]
