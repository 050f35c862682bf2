"""A raw zoo as the raw datasets see it: which checkpoints are used, and why the others are not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.plan.consensus import choose_layout, keep_fitting
from llgbm_pack.plan.options import LayoutOptions
from llgbm_pack.plan.survey import survey
from llgbm_pack.plan.values import Skip
from llgbm_pack.raw.deltas import DeltaSource, JoinedDeltas, Maps, join_verified
from llgbm_pack.sources.tasks import resolve_task, zoo_tasks
from llgbm_pack.sources.texts import Text, read_texts
from llgbm_pack.sources.zoo import Candidate, ZooListing, walk_zoo
from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D
from llgbm_shards.errors import CheckpointError, PlanError, UsageError
from llgbm_shards.layout import Layout

#: Scaling is no part of a raw dataset's samples.
_ANY_ALPHA: Final = 1.0
#: Only the first text of a checkpoint conditions its sample.
_TEXTS: Final = 1
#: Columns of a set's index that a zoo knows too: the others are made when it is packed.
COLUMNS: Final = ("task", "checkpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawCheckpoint:
    """A checkpoint that is used."""

    path: str  # relative to the zoo
    place: Path  # where it lies, below the folder as the user gave it
    weights: Path  # its safetensors file
    delta: DeltaEntry | None
    text: Text  # its first
    task: str  # as a build names it; of a zoo that was read without tasks it may be another

    def column(self, name: str) -> str:
        """What a set's index says in one of :data:`COLUMNS`."""
        return self.task if name == "task" else self.path


@dataclass(kw_only=True, slots=True)
class RawZoo:
    """What a folder holds."""

    places: list[Path]  # of all checkpoints that can be opened, in natural order
    checkpoints: list[RawCheckpoint] = field(default_factory=list)  # those that are used
    skipped: list[Skip]  # those that are not; ``fault`` is False where just the delta is missing
    deltas: JoinedDeltas
    layout: Layout | None  # that they share; None with a foreign tokenizer, which cuts each by itself


def read_zoo(
    folder: Path,
    source: DeltaSource,
    tokenizer: LoraTokenizer2D | None,
    *,
    require_delta: bool,
    texts: Path | None,
    tasks: bool,
    maps: Maps,
) -> RawZoo:
    """Walk a folder and join weights, deltas and texts by the rules of a build.

    With our tokenizer headers are read, and checkpoints that cannot be tokenized, or do not fit the layout of most, are
    skipped. It is None where a foreign one is used: then nothing is known of what it can do. With ``tasks`` they are
    named as a build does it, for which the zoo's manifest is read. The other arguments are those of the dataset.
    """
    listing = walk_zoo(folder)
    candidates, layout, skipped = _fitting(listing, folder, tokenizer)
    wanted = [candidate.path for candidate in candidates]
    known = [*(one.path for one in listing.checkpoints), *(one.path for one in listing.rejected)]
    need_tasks = tasks or texts is not None or any(entry.task for entry in source.entries)
    named = zoo_tasks(folder, listing.nameable) if need_tasks else {}
    deltas = join_verified(
        source, list(dict.fromkeys(known)), zoo_root=folder, wanted=wanted, maps=maps, tasks=named
    )
    places = [folder / one.path for one in listing.checkpoints]
    zoo = RawZoo(places=places, skipped=skipped, deltas=deltas, layout=layout)
    for candidate in candidates:
        _add(zoo, candidate, folder, require_delta, texts, named.get(candidate.path, ""))
    if any(checkpoint.delta is None for checkpoint in zoo.checkpoints):
        deltas.zeros()  # raises now what would fail at the first of them
    return zoo


def checked_columns(columns: Any) -> tuple[str, ...]:
    """Names of columns, some of :data:`COLUMNS`, once each."""
    listed = isinstance(columns, Collection) and not isinstance(columns, str)
    if not (listed and all(name in COLUMNS for name in columns)):
        raise UsageError(
            "not columns that a raw zoo has",
            where="columns",
            expected="a list of some of " + ", ".join(COLUMNS),
            got=f"{columns!r:.200}",
            do="Pack the zoo for the other columns of an index.",
        )
    return tuple(dict.fromkeys(columns))


def _fitting(
    listing: ZooListing, folder: Path, tokenizer: LoraTokenizer2D | None
) -> tuple[Sequence[Candidate], Layout | None, list[Skip]]:
    """The candidates that our tokenizer can cut to one layout; all of them for a foreign one."""
    skipped = [Skip(bad.path, bad.reason, bad.fault) for bad in listing.rejected]
    if tokenizer is None:
        return listing.checkpoints, None, skipped
    options = LayoutOptions(token_order=tokenizer.order, rank=tokenizer.rank, chunk=tokenizer.chunk)
    surveyed, unread = survey(listing.checkpoints, _ANY_ALPHA)
    skipped += unread
    if not surveyed:
        return [], None, skipped
    try:
        layout = choose_layout(surveyed, options, folder)
    except PlanError as error:
        do = "Give a folder of checkpoints of one kind, or a LoraTokenizer2D with a rank."
        raise error.as_(UsageError, do=do) from error
    teachers, misfits = keep_fitting(surveyed, layout, options)
    fitting = {teacher.path for teacher in teachers}
    return [one for one in listing.checkpoints if one.path in fitting], layout, skipped + misfits


def _add(
    zoo: RawZoo, candidate: Candidate, folder: Path, require_delta: bool, texts: Path | None, task: str
) -> None:
    """Take a checkpoint, or note why not. A delta that is there but faulty is a fault in any case."""
    path = candidate.path
    delta = zoo.deltas.entries.get(path)
    if delta is None and (require_delta or path in zoo.deltas.faults):
        zoo.skipped.append(Skip(path, zoo.deltas.why_none(path), path in zoo.deltas.faults))
        return
    try:
        read = read_texts(
            candidate.weights.parent,
            path=path,
            texts_dir=texts,
            task=task,
            probes_file=delta.probes_file if delta else None,
            max_texts=_TEXTS,
        )
    except CheckpointError as error:
        zoo.skipped.append(Skip(path, str(error)))
        return
    zoo.checkpoints.append(
        RawCheckpoint(
            path=path,
            place=folder / path,
            weights=candidate.weights,
            delta=delta,
            text=read.texts[0],
            task=resolve_task(path, task, read.task),
        )
    )
