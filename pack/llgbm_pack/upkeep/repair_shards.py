"""Pack single shards again, exactly as they were: what the index says of them, from the sources as they are now."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from llgbm_pack.packing.checkpoint import Packer
from llgbm_pack.packing.overlay_sample import OverlayPacker
from llgbm_pack.packing.shard import make_packer
from llgbm_pack.plan.assignment import Assignment
from llgbm_pack.plan.option_values import pairs_option, path_option, tokenizer_option
from llgbm_pack.plan.options import recorded_options
from llgbm_pack.plan.overlay import damage_of_base, plan_overlay
from llgbm_pack.plan.overlay_options import recorded_overlay
from llgbm_pack.plan.plan import Plan, make_plan
from llgbm_pack.plan.values import PlannedSample, SetPart
from llgbm_shards.directory import Directory
from llgbm_shards.errors import CheckpointError, PlanError, RepairError, UsageError
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.record import CommitRecord, ShardEntry, checked_digest, read_record
from llgbm_shards.shard_writer import PackedSample, WrittenShard, write_shard
from llgbm_shards.texts import ConditionSpec

#: What a member is made of, for the message when it comes out differently.
_SOURCE: Final = {
    "pieces": "weights",
    "scales": "weights",
    "texts": "texts or text tokenizer",
    "delta": "delta",
    "source": "weights or config",
    "json": "config, task, texts or delta",
}
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairOptions:
    """Options of a repair; the names are those of ``llgbm-pack repair``. What cannot be is a UsageError."""

    out: Path  # the set
    zoo: Path | None = (
        None  # the zoo it was packed from; it may lie elsewhere now. None: only what the set itself gives
    )
    base: Path | None = None  # of an overlay: the set it was made of
    deltas: Path | None = None  # the delta cache it was packed with
    texts: Path | None = None  # the directory of text files it was packed with
    text_tokenizer: str | None = None  # its text tokenizer; needed only when the set's own copy is damaged
    maps: tuple[tuple[str, str], ...] = ()  # its prefix rewrites: a set records no absolute paths
    expect_digest: str | None = None  # the digest that ``shardset.json`` must have; proves a lost one

    def source(self, record: CommitRecord) -> Path | None:
        """What a set was packed from, where it was given."""
        return self.base if record.base else self.zoo

    def __post_init__(self) -> None:
        for name in ("out", "zoo", "base", "deltas", "texts"):
            object.__setattr__(self, name, path_option(name, getattr(self, name), optional=name != "out"))
        object.__setattr__(self, "text_tokenizer", tokenizer_option(self.text_tokenizer))
        object.__setattr__(self, "maps", pairs_option(self.maps))
        if self.expect_digest is not None:
            object.__setattr__(self, "expect_digest", checked_digest(self.expect_digest))


class ShardRestorer:
    """Restores shards of one set.

    Args:
        options: Where set and sources are.
        record: The set's commit record.
        damaged: Names of the shards to restore.
        rows: The rows of a sound index, or None: then membership comes from planning the zoo anew.
        skipped: Checkpoints that the build skipped, or None: they are not known.
    """

    def __init__(
        self,
        options: RepairOptions,
        record: CommitRecord,
        damaged: set[str],
        rows: Sequence[Row] | None = None,
        skipped: Sequence[str] | None = None,
    ) -> None:
        self._options, self._record = options, record
        self._damaged, self._rows, self._skipped = damaged, rows, skipped

    def restore(self, entry: ShardEntry) -> None:
        """Put one shard back, durably; its place stays untouched unless the new one has the recorded digest.

        Raises:
            RepairError: A source is gone or changed; names the checkpoint.
            UsageError: A source the set was packed with was not given, or the zoo gives no plan.
        """
        samples = self._planned(entry) if self._rows is None else self._recorded(entry)
        changed: list[str] = []

        def accept(shard: WrittenShard) -> None:
            if changed or shard.digest != entry.digest or shard.size != entry.size:
                unknown = "a source of one of its checkpoints, which without an index is unknown"
                raise _changed(entry.name, "; ".join(changed) or unknown)

        packed = self._packed(samples, changed, entry.name)
        path = self._options.out / entry.name
        if write_shard(path, packed, expected_bytes=entry.size, accept=accept) is None:
            raise _changed(entry.name, "none of its checkpoints is left")

    def skips_again(self, planned: PlannedSample) -> str:
        """Why a checkpoint that the plan holds and the set does not could not be packed; "" when it can be."""
        try:
            self._packer.pack(planned)
        except CheckpointError as error:
            return str(error)
        return ""

    def _packed(
        self, samples: Sequence[tuple[PlannedSample, Row | None]], changed: list[str], shard: str
    ) -> Iterator[PackedSample]:
        for planned, row in samples:
            try:
                packed = self._packer.pack(planned)
            except (CheckpointError, PlanError) as error:  # PlanError: of an overlay, which skips none
                if row is None:
                    continue  # Planned, but perhaps skipped by the build as well: the digest will tell.
                raise _changed(shard, f"{planned.path}: {error}") from error
            if row is not None and (sources := _differences(packed.sample, row)):
                changed.append(f"{planned.path}: other {sources}")
            yield packed.sample

    def _planned(self, entry: ShardEntry) -> list[tuple[PlannedSample, Row | None]]:
        """The samples of a shard by a plan of the whole zoo."""
        for job in self.plan.jobs:
            if job.name == entry.name:
                return [(sample, None) for sample in job.samples]
        what = "the zoo: a plan of it as it is now has no such shard, and the index is lost"
        raise _changed(entry.name, what)

    def _recorded(self, entry: ShardEntry) -> list[tuple[PlannedSample, Row | None]]:
        """The samples of a shard by the index, with what it says of each."""
        planned = {sample.path: sample for job in self._part.jobs for sample in job.samples}
        reasons = {skip.checkpoint: skip.reason for skip in self._part.skipped}
        rows = {row["checkpoint"]: row for row in self._by_shard[entry.name]}
        lost = [f"{path}: {reasons.get(path, 'gone from the zoo')}" for path in rows if path not in planned]
        if lost:
            raise _changed(entry.name, "; ".join(lost))
        return [
            (replace(planned[path], task=row["task"], base_model=row["base_model"]), row)
            for path, row in rows.items()
        ]

    @functools.cached_property
    def _by_shard(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self._rows or ():
            rows[row["shard"]].append(row)
        return rows

    @functools.cached_property
    def _packer(self) -> Packer | OverlayPacker:
        plan = self.plan if self._rows is None else self._part
        return make_packer(plan.context, plan.tokenizer)

    @functools.cached_property
    def plan(self) -> Plan:
        """What a build of the zoo as it is now would do; a UsageError when that would be refused."""
        return _plan(self._options, self._record)

    @functools.cached_property
    def _part(self) -> Plan:
        """The plan of the damaged shards, by the index."""
        record, rows = self._record, self._rows or ()
        shards = (
            Assignment(
                entry.name, entry.split, tuple(row["checkpoint"] for row in self._by_shard[entry.name])
            )
            for entry in record.shards
            if entry.name in self._damaged
        )
        part = SetPart(
            layout=record.layout,
            conditions=ConditionSpec.from_json(record.texts) if record.texts["forms"] else None,
            delta_width=record.delta_width,
            shards=tuple(shards),
            with_delta=frozenset(row["checkpoint"] for row in rows if row["has_delta"]),
            known=(*(row["checkpoint"] for row in rows), *(self._skipped or ())),
            knows_skipped=self._skipped is not None,
        )
        return _plan(self._options, record, only=part)


def _plan(options: RepairOptions, record: CommitRecord, *, only: SetPart | None = None) -> Plan:
    """The plan of the build, or of the overlay, that made the set; of all of it or some shards."""
    _refuse_missing(options, record)
    tokenizer = str(options.out / TOKENIZER_DIRECTORY) if record.texts["forms"] else None
    given = {name: getattr(options, name) for name in ("out", "deltas", "texts", "maps")}
    given["text_tokenizer"] = tokenizer
    if record.base:
        return plan_overlay(recorded_overlay(record.options, base=options.base, **given), only=only)
    return make_plan(recorded_options(record.options, zoo=options.zoo, **given), only=only)


def _refuse_missing(options: RepairOptions, record: CommitRecord) -> None:
    """All that the set was packed from has to be given."""
    name, where = (
        ("base", "the set it is an overlay of") if record.base else ("zoo", "the zoo it was packed from")
    )
    if getattr(options, name) is None:
        raise RepairError(f"only {where} gives it back", do=f"Give it: --{name} DIR.")
    if record.base and (actual := _digest_of_base(cast(Path, options.base))) != record.base:
        raise UsageError(
            "not the set that it is an overlay of",
            where=str(options.base),
            expected=f"digest {record.base}",
            got=actual,
        )
    for name, given in (("deltas", options.deltas), ("texts", options.texts)):
        if record.options.get(name) and given is None:
            raise UsageError(
                f"the set was packed with --{name}",
                expected=f"--{name} DIR",
                got=f"none; it was {record.options[name]}",
            )


def _digest_of_base(base: Path) -> str:
    with damage_of_base(base):
        return read_record(Directory(base)).digest


def _differences(sample: PackedSample, row: Row) -> str:
    """The sources whose members came out differently; the json, which lists all of them, only when it is alone."""
    fields = [member.field for member in sample.members if member.blake3 != row[f"{member.field}.blake3"]]
    if len(fields) > 1:
        fields.remove("json")
    return ", ".join(dict.fromkeys(_SOURCE[field] for field in fields))


def _changed(shard: str, what: str) -> RepairError:
    return RepairError("cannot be packed again as it was", where=shard, got=what)
