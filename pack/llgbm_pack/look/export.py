"""Export: the checkpoints of a set again, byte for byte; one as a directory that PEFT loads, or the tree of the zoo."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_pack.look.export_deltas import ExportedDeltas
from llgbm_pack.look.export_place import Destination, destination
from llgbm_pack.look.export_plan import (
    ExportPlan,
    Item,
    Progress,
    plan_single,
    plan_tree,
    read_small,
    texts_json,
)
from llgbm_pack.look.peft_config import generated_config
from llgbm_pack.look.restore import blank_of
from llgbm_pack.sources.tasks import MANIFEST_NAME
from llgbm_shards.arguments import local_path
from llgbm_shards.canonical import dump_json
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.members import SUFFIX, decode_pieces
from llgbm_shards.out_directory import refuse_in_set
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import Buffer, read_into, storage_errors

#: One thread makes a file while another waits for the disk.
THREADS: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was exported where."""

    set: str  # digest of the set
    dest: str  # the directory as it was named
    deltas: str  # directory of the delta cache, "" when none was asked for
    checkpoints: int
    num_deltas: int  # how many of them have a delta in the cache
    bytes: int  # of the weights files
    written: int  # files written
    standing: int  # files that an earlier run had written
    inexact: tuple[dict[str, str], ...]  # key, checkpoint, source_dtype and dtype of those the set holds cast
    texts_full: tuple[
        str, ...
    ]  # checkpoints with as many texts as --max-texts let in: the zoo may have had more
    texts_apart: tuple[str, ...]  # checkpoints whose texts lie in a file of their own, which no build reads

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


def delta_directory(dest: Path) -> Path:
    """Where the deltas of an export go: beside its destination, with ``.deltas`` at the end of the name."""
    whole = dest.resolve() if dest.name in ("", "..") else dest.absolute()
    if not whole.name:
        raise UsageError("no directory can stand beside it", where=str(dest), do="Choose another DEST.")
    return whole.with_name(f"{whole.name}.deltas")


def export(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    keys: Sequence[str] = (),
    *,
    everything: bool = False,
    deltas: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write checkpoints of a set as files again. Interrupted and run again, it goes on where it stopped.

    A weights file gets its name only when its BLAKE3 is that of the file which was packed. Of samples that were cast
    the weights are written in the set's dtype, and named in the report.

    Args:
        path: The set.
        dest: A directory that is new, or empty, or of an earlier export of the same.
        keys: Keys of samples. One alone is written straight into ``dest``, as a directory that PEFT loads; of more the
            tree is made that they have in the zoo.
        everything: The whole zoo; then no keys.
        deltas: Write a delta cache too, see :func:`delta_directory`.
        progress: Told about bytes of weights; called by one thread at a time.

    Raises:
        UsageError: Neither keys nor everything, or both; no such sample; ``dest`` holds other files, or is in a set.
        DamageError: The set is not what was written.
        StorageError: It cannot be read, or ``dest`` cannot be written, or another process exports to it.
    """
    root = local_path("dest", dest)
    if everything == bool(keys):
        expected, got = "one or more KEYs, or --all", "both" if everything else "neither"
        raise UsageError("what to export is not clear", where="KEY", expected=expected, got=got)
    homes = [root, *([delta_directory(root)] if deltas else [])]
    for home in homes:
        refuse_in_set(home, "DEST")
    opened = ShardSet(path)
    opened.require_weights()
    if deltas and not opened.record.delta_width:
        raise UsageError("the set has no deltas", where=str(path), do="Leave --deltas out.")
    numbers = range(len(opened)) if everything else list(dict.fromkeys(map(opened.number, keys)))
    single = not everything and len(numbers) == 1
    plan = plan_single(opened, numbers[0]) if single else plan_tree(opened, numbers)
    note = dump_json({"set": opened.digest, "keys": [] if everything else [item.key for item in plan.items]})
    work = _Work(opened, plan, note, progress)
    work.run(root, homes[1] if deltas else None, single)
    return work.report(str(dest), str(homes[1]) if deltas else "")


class _Work:
    """One export: what the threads share."""

    def __init__(self, opened: ShardSet, plan: ExportPlan, note: bytes, progress: Progress | None) -> None:
        self._opened, self._plan, self._note, self._progress = opened, plan, note, progress
        has_delta = opened.index(["has_delta"]).column("has_delta").to_pylist() if plan.items else []
        self._deltas = ExportedDeltas(
            opened,
            [
                (item.checkpoint, item.number, item.delta_file)
                for item in plan.items
                if has_delta[item.number]
            ],
        )
        self._total = sum(item.size for item in plan.items)
        self._done = 0
        self._files = [0, 0]
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def run(self, root: Path, deltas: Path | None, single: bool) -> None:
        """Write everything."""
        with contextlib.ExitStack() as held:
            places = [held.enter_context(destination(root, self._note, self._plan.paths))]
            if deltas:
                places.append(held.enter_context(destination(deltas, self._note, self._deltas.paths)))
            pool = held.enter_context(ThreadPoolExecutor(min(THREADS, len(self._plan.items))))
            # The results are taken one by one, so that the first fault calls off what has not begun.
            for _ in pool.map(lambda item: self._export(item, single, *places), self._plan.items):
                pass
            if self._plan.manifest:
                places[0].put(MANIFEST_NAME, [self._plan.manifest])
            if deltas:
                self._deltas.finish(places[1])
            self._files = [sum(len(p.written) for p in places), sum(len(p.standing) for p in places)]

    def report(self, dest: str, deltas: str) -> ExportReport:
        """What was done."""
        names, dtype = ("key", "checkpoint", "source_dtype"), self._opened.layout.dtype
        most = self._opened.record.options.get("max_texts")
        return ExportReport(
            set=self._opened.digest,
            dest=dest,
            deltas=deltas,
            checkpoints=len(self._plan.items),
            num_deltas=len(self._deltas) if deltas else 0,
            bytes=self._total,
            written=self._files[0],
            standing=self._files[1],
            inexact=tuple(
                {**{name: getattr(item, name) for name in names}, "dtype": dtype}
                for item in self._plan.items
                if not item.digest
            ),
            texts_full=tuple(item.checkpoint for item in self._plan.items if item.num_texts == most),
            texts_apart=self._plan.apart,
        )

    def _export(
        self, item: Item, single: bool, place: Destination, deltas: Destination | None = None
    ) -> None:
        """Write all files of one checkpoint; the delta last, for one older than its weights is called stale."""
        info, head, config = read_small(self._opened, item.number)
        place.enter(item.path(item.weights))
        weights = item.path(item.weights)
        if not (item.digest and place.stands(weights, item.size, item.digest)):
            self._write_weights(item, info, head, place)
        if item.config_file and not config:
            config = generated_config(info) if single else b""
        if item.config_file and config:
            place.put(item.path(item.config_file), [config])
        if item.texts_file:
            place.put(item.path(item.texts_file), [texts_json(info, item.prompts_task)])
        if deltas:
            self._deltas.write(item.checkpoint, info, deltas)
        with self._lock:
            self._done += item.size
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _write_weights(self, item: Item, info: dict[str, Any], head: bytes, place: Destination) -> None:
        blank = blank_of(head, info, self._opened.layout)
        data = self._buffer("data", blank.size - len(blank.head))
        blank.fill(self._pieces(item), data)
        digest = blake3(blank.head)
        digest.update(data.data)
        parts: list[Buffer] = [blank.head, data.data]
        if not item.digest:
            place.put(item.path(item.weights), parts)
        elif digest.hexdigest() == item.digest:
            place.write(item.path(item.weights), parts, blank.size)
        else:
            self._refuse(item, digest.hexdigest())

    def _pieces(self, item: Item) -> NDArray[Any]:
        """The pieces, not verified: what is made of them is, or else they are verified here."""
        extent = next(one for one in self._opened.extents(item.number) if one.field == "pieces")
        member = self._buffer("member", extent.size)
        with self._opened.open_shard(extent.shard, prove=False) as fd, storage_errors(Path(extent.shard)):
            missing = read_into(fd, [member], extent.offset)
        if missing or (not item.digest and blake3(member.data).hexdigest() != extent.blake3):
            self._opened.read_member(extent)  # says what is wrong with it
        return decode_pieces(member.data, self._opened.layout, where=SUFFIX["pieces"])

    def _refuse(self, item: Item, got: str) -> None:
        for extent in self._opened.extents(item.number):
            self._opened.read_member(extent)
        raise DamageError(
            "the sample does not give the weights file it was packed from",
            key=item.key,
            member=SUFFIX["source"],
            expected=f"digest {item.digest}",
            got=got,
            do="Nothing of it was written. Pack this checkpoint again from its source.",
        )

    def _buffer(self, name: str, size: int) -> NDArray[np.uint8]:
        """Memory of this thread that grows to the largest: fresh pages cost more than the copy into them."""
        held: NDArray[np.uint8] | None = getattr(self._buffers, name, None)
        if held is None or len(held) < size:
            held = np.empty(size, np.uint8)
            setattr(self._buffers, name, held)
        return held[:size]
