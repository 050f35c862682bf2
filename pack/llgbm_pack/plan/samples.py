"""The samples of a plan: each teacher with its texts, its delta and its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from llgbm_pack.plan.deltas import DeltaPlan
from llgbm_pack.plan.estimate import TextSize
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.survey import Teacher
from llgbm_pack.plan.values import PlannedSample, Skip
from llgbm_pack.sources.tasks import resolve_task
from llgbm_pack.sources.texts import read_texts
from llgbm_shards.errors import CheckpointError, PlanError
from llgbm_shards.members import sample_key


def join_samples(
    teachers: Sequence[Teacher], deltas: DeltaPlan, tasks: Mapping[str, str], options: PackOptions
) -> tuple[list[PlannedSample], list[TextSize], list[Skip]]:
    """Read and check the texts of each teacher, and put together what belongs together.

    Args:
        teachers: What is to be packed.
        deltas: Their deltas.
        tasks: The zoo's own tasks, by path.
        options: Where texts are, and how many are kept.

    Returns:
        The samples, the sizes of their texts, and what is left out because its texts are faulty.

    Raises:
        PlanError: Two samples have one key.
    """
    samples: list[PlannedSample] = []
    texts: list[TextSize] = []
    faults: list[Skip] = []
    for teacher in teachers:
        match = deltas.matches.get(teacher.path)
        zoo_task = tasks.get(teacher.path, "")
        try:
            found = read_texts(
                teacher.weights.parent,
                path=teacher.path,
                texts_dir=options.texts,
                task=zoo_task,
                probes_file=match.entry.probes_file if match else None,
                max_texts=options.max_texts,
                seed=options.seed,
            )
        except CheckpointError as error:
            faults.append(Skip(teacher.path, str(error)))
            continue
        texts.append(TextSize.of(found.source, found.texts))
        samples.append(
            PlannedSample(
                path=teacher.path,
                key=sample_key(teacher.path),
                task=resolve_task(teacher.path, zoo_task, found.task),
                base_model=teacher.base_model,
                weights=teacher.weights,
                config=teacher.config,
                zoo_task=zoo_task,
                text_files=found.files,
                delta=match.entry if match else None,
                matched_by=match.matched_by if match else "",
            )
        )
    _refuse_equal_keys(samples)
    return samples, texts, faults


def _refuse_equal_keys(samples: Sequence[PlannedSample]) -> None:
    keys = Counter(sample.key for sample in samples)
    twice = [sample.path for sample in samples if keys[sample.key] > 1]
    if twice:
        raise PlanError("two checkpoints have the same key", got=", ".join(twice), do="Rename one of them.")
