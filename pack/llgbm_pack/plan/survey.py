"""The survey: every candidate's header and config read, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llgbm_pack.plan.same_reason import grouped
from llgbm_pack.plan.values import Skip
from llgbm_pack.sources.adapter import read_adapter
from llgbm_pack.sources.zoo import Candidate
from llgbm_shards.errors import CheckpointError, HeaderError, PlanError, StorageError

#: Module name -> (in, out), sorted by name: what two checkpoints must share to be in one set.
Shapes = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the survey keeps of a checkpoint; shapes are shared between equal checkpoints."""

    path: str  # POSIX path relative to the zoo
    weights: Path  # the safetensors file
    config: Path | None  # adapter_config.json, or None
    dtype: str  # source dtype
    rank: int  # largest rank of its modules
    shapes: Shapes  # widths of its modules
    base_model: str  # as the config names it, "" when unknown


def survey(candidates: Iterable[Candidate], alpha: float | None) -> tuple[list[Teacher], list[Skip]]:
    """Those that can be packed as far as headers and configs tell, and those that cannot.

    ``alpha`` is the lora_alpha of those without a config.
    """
    shapes: dict[Shapes, Shapes] = {}
    teachers: list[Teacher] = []
    skipped: list[Skip] = []
    for candidate in candidates:
        try:
            adapter = read_adapter(candidate.weights, candidate.config, alpha=alpha)
        except (CheckpointError, HeaderError, StorageError) as error:
            skipped.append(Skip(candidate.path, str(error)))
            continue
        own = tuple(
            sorted((name, pair.in_features, pair.out_features) for name, pair in adapter.pairs.items())
        )
        teachers.append(
            Teacher(
                path=candidate.path,
                weights=candidate.weights,
                config=candidate.config,
                dtype=adapter.dtype,
                rank=adapter.rank,
                shapes=shapes.setdefault(own, own),
                base_model=adapter.base_model,
            )
        )
    return teachers, skipped


def nothing_to_pack(zoo: Path, skipped: Sequence[Skip], excluded: int) -> PlanError:
    """Why there is no plan; ``excluded`` counts what --include, --exclude and --limit left out."""
    if excluded and not skipped:
        return PlanError(
            "no checkpoint is left to pack",
            where=str(zoo),
            got=f"{excluded} are excluded",
            do="Globs match the path relative to the zoo: look at --include and --exclude.",
        )
    if not skipped:
        return PlanError(
            "no checkpoint found",
            where=str(zoo),
            expected="directories with adapter_config.json and adapter_model.safetensors",
            do="Name the directory that holds the checkpoints.",
        )
    rows = grouped((skip.checkpoint, skip.reason) for skip in skipped)
    return PlanError(
        f"none of {len(skipped)} checkpoints can be packed", where=str(zoo), got="\n  " + "\n  ".join(rows)
    )
