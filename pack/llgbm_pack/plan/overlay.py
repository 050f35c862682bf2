"""The plan of an overlay: the samples of a finished set again, with other deltas or texts. Nothing is written here."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from llgbm_pack.plan.assignment import Assignment
from llgbm_pack.plan.deltas import DeltaPlan
from llgbm_pack.plan.overlay_deltas import base_deltas
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_pack.plan.plan import Plan, fingerprint, make_jobs, plan_conditions
from llgbm_pack.plan.values import PackContext, PlannedSample, SetPart
from llgbm_pack.sources.text_files import read_text_file
from llgbm_pack.sources.texts import dataset_file
from llgbm_shards import ustar
from llgbm_shards.errors import CheckpointError, DamageError, PlanError, UsageError
from llgbm_shards.members import SUFFIX
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.record import read_listed
from llgbm_shards.shardset import ShardSet

#: Bytes of a shard, about: many samples of a few KiB each.
_SHARD_BYTES: Final = 64 << 20
_COLUMNS: Final = ("key", "split", "shard", "checkpoint", "task", "base_model")


def plan_overlay(options: OverlayOptions, out: Path | None = None, *, only: SetPart | None = None) -> Plan:
    """Read the base's index, join and verify the deltas, find the texts; decide everything but the bytes.

    Args:
        options: What is asked for.
        out: Directory the shards go to; ``options.out`` unless it is being replaced.
        only: Shards of a finished overlay, to plan these and no others.

    Raises:
        UsageError: The base is an overlay itself; or texts or deltas do not allow what is asked for: lists all of it.
        DamageError: The base is unfinished or damaged.
        StorageError: Something cannot be read.
    """
    with damage_of_base(options.base):
        return _plan(options, out, only)


@contextlib.contextmanager
def damage_of_base(path: Path) -> Iterator[None]:
    """For a block that reads the base: its damage is told with its path, for the overlay has files of the same names."""
    try:
        yield
    except DamageError as error:
        place = error.shard if error.shard == str(path) else str(path / error.shard)
        raise error.as_(DamageError, shard=place, key=error.key, member=error.member) from error


def _plan(options: OverlayOptions, out: Path | None, only: SetPart | None) -> Plan:
    base = _open(options)
    options = options.settled(base.record)
    table = base.index([*_COLUMNS, "json.size"])
    rows = [
        dict(zip(_COLUMNS, row, strict=True))
        for row in zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True)
    ]
    if only:
        paths = only.paths
        rows = [row for row in rows if row["checkpoint"] in paths]
    deltas = base_deltas(options, base, table, only)
    tokenizer, conditions, notes = plan_conditions(options, only)
    files = _text_files(options.texts, rows)
    if options.texts and not (files or only):
        raise _unusable(options.texts, "no file of any dataset of the base")
    samples = [_sample(row, base, deltas, files) for row in rows]
    without = {skip.checkpoint for skip in deltas.skipped}
    context = _context(options, base, out or options.out, conditions, deltas.width)
    shards = only.shards if only else _assigned(table, context)
    jobs = make_jobs(shards, [sample for sample in samples if sample.path not in without], context)
    sources = Counter("texts-dir" if sample.text_files else "base" for sample in samples if conditions)
    return Plan(
        options=options,
        context=context,
        jobs=jobs,
        found=len(rows),
        excluded=0,
        ignored=(),
        skipped=tuple(deltas.skipped),
        notes=(*notes, *deltas.notes),
        text_sources=dict(sorted(sources.items())),
        estimated_bytes=len(rows) * _sample_bytes(table, context),
        fingerprint=fingerprint(options, jobs),
        tokenizer=tokenizer,
    )


def _open(options: OverlayOptions) -> ShardSet:
    base = ShardSet(options.base)
    if base.record.base:
        do = "Name the set that it was made of: one overlay may have both deltas and texts."
        raise UsageError(
            "BASE is an overlay itself", where=str(options.base), expected="a set with weights", do=do
        )
    if options.with_texts and options.text_tokenizer is None:
        for entry in base.record.files:
            if entry.name.startswith(f"{TOKENIZER_DIRECTORY}/"):
                read_listed(base.directory, entry)  # proves it
    return base


def _text_files(texts: Path | None, rows: Sequence[Mapping[str, str]]) -> dict[str, Path]:
    """The file of newer texts of each checkpoint that has one; each file is read once, to refuse it now."""
    if texts is None:
        return {}
    by_dataset: dict[tuple[str, str], Path | None] = {}
    files = {}
    for row in rows:
        place = row["task"], row["checkpoint"].partition("/")[0]
        if place not in by_dataset:
            by_dataset[place] = dataset_file(texts, row["checkpoint"], row["task"])
        if file := by_dataset[place]:
            files[row["checkpoint"]] = file
    faults = []
    for file in sorted(set(files.values())):
        try:
            read_text_file(file)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise _unusable(texts, "\n  " + "\n  ".join(faults))
    return files


def _unusable(texts: Path, got: str) -> PlanError:
    return PlanError("texts cannot be used", where=str(texts), expected="DATASET.json of texts", got=got)


def _sample(
    row: Mapping[str, str], base: ShardSet, deltas: DeltaPlan, files: Mapping[str, Path]
) -> PlannedSample:
    path = row["checkpoint"]
    match, file = deltas.matches.get(path), files.get(path)
    return PlannedSample(
        path=path,
        key=row["key"],
        task=row["task"],
        base_model=row["base_model"],
        weights=base.path / row["shard"],
        config=None,
        zoo_task="",
        text_files=() if file is None else (file,),
        delta=match.entry if match else None,
        matched_by=match.matched_by if match else "",
    )


def _context(
    options: OverlayOptions, base: ShardSet, out: Path, conditions: Any, delta_width: int
) -> PackContext:
    has = {"texts": conditions is not None, "delta": delta_width > 0, "json": True}
    recorded = base.record.options
    return PackContext(
        zoo=options.base,
        out=out,
        layout=base.layout,
        members=tuple(field for field in SUFFIX if has.get(field)),
        cast=False,
        alpha=None,
        texts=options.texts,
        max_texts=recorded.get("max_texts") or None,
        seed=recorded.get("seed", 0),
        conditions=conditions,
        delta_width=delta_width,
        base=base.digest,
    )


def _sample_bytes(table: pa.Table, context: PackContext) -> int:
    """Bytes of a sample, about; ids of texts take no more than the texts in the json."""
    json = int(pc.mean(table.column("json.size")).as_py() or 0)
    parts = 2 if "texts" in context.members else 1
    return json * parts + 4 * context.delta_width + 2 * ustar.BLOCK * len(context.members)


def _assigned(table: pa.Table, context: PackContext) -> list[Assignment]:
    """The base's samples in its order and its splits, many to a shard."""
    per_shard = max(1, _SHARD_BYTES // _sample_bytes(table, context))
    by_split: dict[str, list[str]] = {}
    for path, split in zip(
        table.column("checkpoint").to_pylist(), table.column("split").to_pylist(), strict=True
    ):
        by_split.setdefault(split, []).append(path)
    return [
        Assignment(f"{split}-{number:06d}.tar", split, tuple(paths[start : start + per_shard]))
        for split, paths in by_split.items()
        for number, start in enumerate(range(0, len(paths), per_shard))
    ]
