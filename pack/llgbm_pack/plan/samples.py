"""The samples of a plan: each teacher with its texts, its delta and its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llgbm_pack.deltas.join import Match
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
    teachers: Iterable[Teacher], deltas: DeltaPlan, tasks: Mapping[str, str], options: PackOptions
) -> tuple[list[PlannedSample], list[TextSize], list[Skip]]:
    """Read and check the texts of each teacher, and put together what belongs together.

    Returns:
        The samples, the sizes of their texts, and what is left out because its texts are faulty.

    Raises:
        PlanError: Two samples have one key.
    """
    samples: list[PlannedSample] = []
    sizes: list[TextSize] = []
    faults: list[Skip] = []
    for teacher in teachers:
        match, zoo_task = deltas.matches.get(teacher.path), tasks.get(teacher.path, "")
        try:
            sample, size = _join(teacher, match, zoo_task, options)
        except CheckpointError as error:
            faults.append(Skip(teacher.path, str(error)))
            continue
        samples.append(sample)
        sizes.append(size)
    _refuse_equal_keys(samples)
    return samples, sizes, faults


def _join(
    teacher: Teacher, match: Match | None, zoo_task: str, options: PackOptions
) -> tuple[PlannedSample, TextSize]:
    texts = read_texts(
        teacher.weights.parent,
        path=teacher.path,
        texts_dir=options.texts,
        task=zoo_task,
        probes_file=match.entry.probes_file if match else None,
        max_texts=options.max_texts,
        seed=options.seed,
    )
    sample = PlannedSample(
        path=teacher.path,
        key=sample_key(teacher.path),
        task=resolve_task(teacher.path, zoo_task, texts.task),
        base_model=teacher.base_model,
        weights=teacher.weights,
        config=teacher.config,
        zoo_task=zoo_task,
        text_files=texts.files,
        delta=match.entry if match else None,
        matched_by=match.matched_by if match else "",
    )
    return sample, TextSize.of(texts.source, texts.texts)


def _refuse_equal_keys(samples: Sequence[PlannedSample]) -> None:
    keys = Counter(sample.key for sample in samples)
    twice = [sample.path for sample in samples if keys[sample.key] > 1]
    if twice:
        raise PlanError("two checkpoints have the same key", got=", ".join(twice), do="Rename one of them.")
