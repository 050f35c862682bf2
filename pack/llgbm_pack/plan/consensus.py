"""One layout for a set: the one that most of the zoo has; what does not fit is skipped, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llgbm_pack.plan.options import LayoutOptions
from llgbm_pack.plan.survey import Shapes, Teacher
from llgbm_pack.plan.values import Skip
from llgbm_pack.tokenize.module_table import make_layout
from llgbm_shards.errors import PlanError
from llgbm_shards.layout import Layout

Vote = tuple[str, int, Shapes]


def choose_layout(teachers: Sequence[Teacher], options: LayoutOptions, zoo: Path) -> Layout:
    """The layout that most teachers (one or more) share, after ``--dtype`` and ``--rank`` have had their say.

    Raises:
        PlanError: Two layouts have the same count and none has more.
    """
    # A teacher whose rank is refused in any case has no vote on the rest.
    voters = [teacher for teacher in teachers if teacher.rank <= (options.rank or teacher.rank)] or teachers
    votes = Counter(_vote(teacher, options) for teacher in voters)
    ranked = votes.most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        raise PlanError(
            "no layout that most of the zoo shares",
            where=str(zoo),
            expected="one dtype, rank and module table",
            got=f"a tie: {_describe(*ranked[0])}; {_describe(*ranked[1])}",
            do="Use --include/--exclude to choose one kind, --dtype to cast, or --rank to pad.",
        )
    dtype, rank, shapes = ranked[0][0]
    return make_layout(
        {name: (rank, wide_in, wide_out) for name, wide_in, wide_out in shapes},
        dtype=dtype,
        token_order=options.token_order,
        chunk=options.chunk,
        rank=rank,
    )


def keep_fitting(
    teachers: Sequence[Teacher], layout: Layout, options: LayoutOptions
) -> tuple[list[Teacher], list[Skip]]:
    """Part the teachers into those that fit the layout and those that do not."""
    table = {module.name: (module.in_features, module.out_features) for module in layout.modules}
    verdicts: dict[Vote, str] = {}  # of equal teachers; their vote may hide their rank or dtype
    fitting, skipped = [], []
    for teacher in teachers:
        kind = (teacher.dtype, teacher.rank, teacher.shapes)
        if kind not in verdicts:
            verdicts[kind] = _misfit(teacher, layout, table, options)
        if reason := verdicts[kind]:
            skipped.append(Skip(teacher.path, reason))
        else:
            fitting.append(teacher)
    return fitting, skipped


def _vote(teacher: Teacher, options: LayoutOptions) -> Vote:
    return (_dtype(teacher, options), options.rank or teacher.rank, teacher.shapes)


def _dtype(teacher: Teacher, options: LayoutOptions) -> str:
    return teacher.dtype if options.dtype == "auto" else options.dtype


def _misfit(
    teacher: Teacher, layout: Layout, table: dict[str, tuple[int, int]], options: LayoutOptions
) -> str:
    """Why a teacher does not fit, or an empty string."""
    dtype = _dtype(teacher, options)
    if dtype != layout.dtype:
        return f"dtype does not fit the set: expected {layout.dtype}, got {dtype}. Cast the whole set with --dtype."
    if teacher.rank > layout.rank or (options.rank is None and teacher.rank != layout.rank):
        largest = max(teacher.rank, layout.rank)
        return f"rank does not fit the set: expected {layout.rank}, got {teacher.rank}. Pad with --rank {largest}."
    for name, wide_in, wide_out in teacher.shapes:
        if name not in table:
            return f"module table does not fit the set: {name} is not a module of most of the zoo"
        if table[name] != (wide_in, wide_out):
            widths = f"expected (in, out) {table[name]}, got {(wide_in, wide_out)}"
            return f"module table does not fit the set: {name} {widths}"
    return ""


def _describe(vote: Vote, count: int) -> str:
    dtype, rank, shapes = vote
    widths = ", ".join(f"{name} {wide_in}->{wide_out}" for name, wide_in, wide_out in shapes[:1])
    return f"{count} of {dtype}, rank {rank}, {len(shapes)} modules ({widths}, ...)"
