"""Join the samples of a finished set with a newer delta cache, by the paths that the set knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow as pa

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.deltas.paths import rewrite, split_path, unwrap
from llgbm_pack.plan.deltas import DeltaPlan, join_and_verify
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_pack.plan.same_reason import grouped
from llgbm_pack.plan.values import SetPart
from llgbm_shards.errors import PlanError
from llgbm_shards.names import SKIPPED_NAME
from llgbm_shards.record import read_listed
from llgbm_shards.shardset import ShardSet
from llgbm_shards.skipped import skipped_checkpoints

#: Options of a build of a part of its zoo.
_OF_PARTS: Final = ("include", "exclude", "limit")


def base_deltas(options: OverlayOptions, base: ShardSet, table: pa.Table, only: SetPart | None) -> DeltaPlan:
    """Join by the paths that the base knows: packed checkpoints and skipped ones claim their own deltas.

    Where the zoo lies is not known, so its place is one that there is not, of the zoo's name.
    """
    packed: list[str] = table.column("checkpoint").to_pylist()
    skipped = skipped_checkpoints(read_listed(base.directory, base.record.file(SKIPPED_NAME)))
    tasks = {
        path: task
        for path, task in zip(packed, table.column("task").to_pylist(), strict=True)
        # Of a path of one component it may be what its prompts.json says, often the adapter's name.
        if len(PurePosixPath(path).parts) > 1
    }
    zoo = Path("/", base.digest, str(base.record.options.get("zoo") or "zoo"))
    wanted = packed
    if only is not None:
        with_delta = only.with_delta & only.paths
        wanted = [path for path in packed if path in with_delta]
    plan = join_and_verify(wanted, [*packed, *skipped], tasks, zoo, options, only)
    if only is None and any(base.record.options.get(name) for name in _OF_PARTS):
        _refuse_uncertain(plan, zoo.name, options)
    faults = [skip for skip in plan.skipped if skip.fault]
    if faults and only is None:
        raise PlanError(
            f"{len(faults)} deltas cannot be used, and an overlay has every sample of its base",
            where=str(options.deltas),
            got="\n  " + "\n  ".join(grouped((skip.checkpoint, skip.reason) for skip in faults)),
            do="\nMeasure them again; or take them out of the cache and say --missing-delta zeros.",
        )
    return plan


def _refuse_uncertain(plan: DeltaPlan, zoo: str, options: OverlayOptions) -> None:
    """What a base left out of its zoo it does not know: a delta joined by less than a whole path may be of such a one."""
    uncertain = [
        f"{path}: {match.entry}"
        for path, match in plan.matches.items()
        if not _is_whole(path, match.entry, zoo, options.maps)
    ]
    if uncertain:
        left_out = ", ".join(f"--{name}" for name in _OF_PARTS)
        raise PlanError(
            f"{len(uncertain)} deltas may be of checkpoints that the base left out ({left_out})",
            where=str(options.deltas),
            expected="recorded paths that end in the checkpoint's path in the zoo",
            got="\n  " + "\n  ".join(uncertain),
            do="\nSay where they were measured with --map OLD=NEW.",
        )


def _is_whole(path: str, delta: DeltaEntry, zoo: str, maps: Sequence[tuple[str, str]]) -> bool:
    """Whether a delta names the whole path of a checkpoint; of a path of one component, the zoo's name too."""
    parts, recorded = unwrap(split_path(path)), unwrap(rewrite(split_path(delta.path), maps))
    wanted = (zoo, *parts) if len(parts) == 1 < len(recorded) else parts
    return recorded[-len(wanted) :] == wanted
