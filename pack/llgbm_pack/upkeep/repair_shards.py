"""Pack single shards again, exactly as they were: what the index says of them, from the sources as they are now."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llgbm_pack.deltas.agree import settle
from llgbm_pack.deltas.cache import DeltaCache
from llgbm_pack.deltas.join import Match, join_deltas
from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.packing.checkpoint import Packer
from llgbm_pack.plan.deltas import refusal
from llgbm_pack.plan.plan import Plan, make_plan
from llgbm_pack.plan.values import PackContext, PlannedSample
from llgbm_pack.sources.tasks import zoo_tasks
from llgbm_pack.sources.zoo import Candidate, walk_zoo
from llgbm_pack.upkeep.repair_options import RepairOptions, pack_options
from llgbm_shards.errors import CheckpointError, RepairError
from llgbm_shards.record import CommitRecord, ShardEntry
from llgbm_shards.shard_writer import PackedSample, WrittenShard, write_shard
from llgbm_shards.texts import ConditionSpec

#: What a member is made of, for the message when it comes out differently.
_SOURCE: Final = {
    "body": "weights",
    "scales": "weights",
    "texts": "texts or text tokenizer",
    "delta": "delta",
    "json": "config, task, texts or delta",
}
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Job:
    """The samples of a shard, and what the index says of each; None without a sound index."""

    samples: tuple[PlannedSample, ...]
    rows: tuple[Row | None, ...]


class ShardRestorer:
    """Restores shards of one set.

    Args:
        options: Where set and sources are.
        record: The set's commit record.
        rows: The rows of a sound index, or None: then membership comes from planning the zoo anew.
        known: Checkpoints that the set packed or skipped.
    """

    def __init__(
        self, options: RepairOptions, record: CommitRecord, rows: Sequence[Row] | None, known: Sequence[str]
    ) -> None:
        self._options, self._record, self._rows, self._known = options, record, rows, known

    def restore(self, entry: ShardEntry) -> None:
        """Put one shard back, durably; its place stays untouched unless the new one has the recorded digest.

        Raises:
            RepairError: A source is gone or changed; names the checkpoint.
            UsageError: A source the set was packed with was not given; or, without an index, the zoo gives no plan.
            StorageError: It cannot be written.
        """
        job = self._job(entry)
        changed: list[str] = []

        def accept(shard: WrittenShard) -> None:
            if changed or shard.digest != entry.digest or shard.size != entry.size:
                found = (
                    "; ".join(changed)
                    or "a source of one of its checkpoints, which without an index is unknown"
                )
                raise _changed(entry.name, found)

        written = write_shard(
            self._options.out / entry.name,
            self._packed(job, changed, entry.name),
            expected_bytes=entry.size,
            accept=accept,
        )
        if written is None:
            raise _changed(entry.name, "none of its checkpoints is left")

    def skips_again(self, path: str) -> str:
        """Why a checkpoint that the plan holds and the set does not could not be packed; "" when it can be."""
        planned = {sample.path: sample for job in self.plan.jobs for sample in job.samples}
        try:
            self._packer.pack(planned[path])
        except CheckpointError as error:
            return str(error)
        return ""

    def _packed(self, job: _Job, changed: list[str], shard: str) -> Iterator[PackedSample]:
        for planned, row in zip(job.samples, job.rows, strict=True):
            try:
                packed = self._packer.pack(planned)
            except CheckpointError as error:
                if row is None:
                    continue  # Planned, but perhaps skipped by the build as well: the digest will tell.
                raise _changed(shard, f"{planned.path}: {error}") from error
            if row is not None and (sources := _differences(packed.sample, row)):
                changed.append(f"{planned.path}: other {sources}")
            yield packed.sample

    def _job(self, entry: ShardEntry) -> _Job:
        if self._rows is None:
            for job in self.plan.jobs:
                if job.name == entry.name:
                    return _Job(job.samples, (None,) * len(job.samples))
            raise _changed(
                entry.name, "the zoo: a plan of it as it is now has no such shard, and the index is lost"
            )
        rows = tuple(row for row in self._rows if row["shard"] == entry.name)
        gone = [row["checkpoint"] for row in rows if row["checkpoint"] not in self._candidates]
        if gone:
            raise _changed(entry.name, "; ".join(f"{path}: gone from the zoo" for path in gone))
        return _Job(tuple(self._planned(row, entry.name) for row in rows), rows)

    def _planned(self, row: Row, shard: str) -> PlannedSample:
        path = row["checkpoint"]
        candidate = self._candidates[path]
        match = self._matches.get(path) if row["has_delta"] else None
        if row["has_delta"] and match is None:
            raise _changed(shard, f"{path}: no delta found (give --map as for the build)")
        return PlannedSample(
            path=path,
            key=row["key"],
            task=row["task"],
            base_model=row["base_model"],
            weights=candidate.weights,
            config=candidate.config,
            zoo_task=self._tasks.get(path, ""),
            text_files=(),
            delta=match.entry if match else None,
            matched_by=match.matched_by if match else "",
        )

    @functools.cached_property
    def _packer(self) -> Packer:
        record, options = self._record, pack_options(self._options, self._record)
        forms = record.texts["forms"]
        return Packer(
            PackContext(
                zoo=options.zoo,
                out=options.out,
                layout=record.layout,
                members=record.members,
                cast=options.dtype != "auto",
                alpha=options.alpha,
                texts=options.texts,
                max_texts=options.max_texts,
                seed=options.seed,
                conditions=ConditionSpec.from_json(record.texts) if forms else None,
                delta_width=record.delta_width,
            )
        )

    @functools.cached_property
    def plan(self) -> Plan:
        """What a build of the zoo as it is now would do.

        Raises:
            UsageError: The zoo no longer allows the build that made the set.
        """
        return make_plan(pack_options(self._options, self._record), self._options.out)

    @functools.cached_property
    def _candidates(self) -> dict[str, Candidate]:
        options = pack_options(self._options, self._record)
        listing = walk_zoo(options.zoo, options.include, options.exclude)
        return {candidate.path: candidate for candidate in listing.checkpoints}

    @functools.cached_property
    def _tasks(self) -> dict[str, str]:
        return zoo_tasks(self._options.zoo, walk_zoo(self._options.zoo).nameable)

    @functools.cached_property
    def _matches(self) -> dict[str, Match]:
        if self._options.deltas is None:
            return {}
        options = pack_options(self._options, self._record)
        paths = list(self._known)
        if options.include or options.exclude or options.limit:  # The build asked these for their deltas too.
            paths += [candidate.path for candidate in walk_zoo(options.zoo).checkpoints]
        entries: Sequence[DeltaEntry] = DeltaCache(self._options.deltas).entries()
        joined = join_deltas(
            list(dict.fromkeys(paths)),
            zoo_root=options.zoo,
            entries=entries,
            maps=options.maps,
            tasks=self._tasks,
        )
        refuse = refusal(self._options.deltas)
        return settle(joined, set(self._known), refuse).matches


def _differences(sample: PackedSample, row: Row) -> str:
    """The sources whose members came out differently; the json, which lists all of them, only when it is alone."""
    fields = [member.field for member in sample.members if member.blake3 != row[f"{member.field}.blake3"]]
    if len(fields) > 1:
        fields.remove("json")
    return ", ".join(dict.fromkeys(_SOURCE[field] for field in fields))


def _changed(shard: str, what: str) -> RepairError:
    return RepairError("cannot be packed again as it was", where=shard, got=what)
