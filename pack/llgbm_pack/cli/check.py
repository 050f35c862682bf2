"""The options of ``check`` and ``llgbm-check``, and the work behind both. Without torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llgbm_pack.cli.output import Output
from llgbm_shards.errors import LlgbmError
from llgbm_shards.findings import LEVELS

if TYPE_CHECKING:
    from llgbm_pack.upkeep.compare import AgainstReport
    from llgbm_shards.findings import CheckReport

_LEVELS: Final = (
    "quick: presence, sizes, commit record, index, not the shards' bytes. full: every byte. "
    "deep: the values as well: shapes, padding, finite, ids in the vocabulary, norms, json schema."
)


class Fraction(click.ParamType):  # type: ignore[type-arg]
    """A share of the samples: 5% or 0.05."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text."""
        text = str(value)
        try:
            fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            self.fail(f"{value!r} is not a share above 0; write for example 5%", param, ctx)
        return fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckArguments:
    """What ``check`` was asked for."""

    out: str
    level: str
    sample: float
    seed: int | None
    against: Path | None
    expect_digest: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What ``check`` found.

    Attributes:
        report: About the set.
        against: About the zoo, when it was asked for and the set can be opened.
        problem: Why the zoo was not compared, else "".
    """

    report: CheckReport
    against: AgainstReport | None
    problem: str

    @property
    def exit_code(self) -> int:
        """That of the report; 3 when the set is sound and the zoo could not be compared with it."""
        return self.report.exit_code or (3 if self.problem else 0)

    def to_json(self) -> dict[str, Any]:
        """The result as ``--format json`` prints it."""
        against = self.against.to_json() if self.against else None
        return {**self.report.to_json(), "against": against, "against_problem": self.problem}


_OPTIONS: Final = (
    click.argument("out"),
    click.option("--level", type=click.Choice(LEVELS), default="full", show_default=True, help=_LEVELS),
    click.option(
        "--sample", type=Fraction(), default="100%", metavar="5%", help="Read only this share of the samples."
    ),
    click.option(
        "--seed",
        type=int,
        help="Which share --sample reads; successive seeds tile the set. [default: the day]",
    ),
    click.option(
        "--against",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="ZOO",
        help="Say too which checkpoints of ZOO are new, changed or gone.",
    ),
    click.option("--expect-digest", metavar="D", help="Digest that shardset.json must have."),
)


def check_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the arguments and options of ``check``, handed to the command as ``arguments``."""

    @functools.wraps(command)
    def wrapped(output: Output, **values: Any) -> int:
        return command(arguments=CheckArguments(**values), output=output)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def run_check(arguments: CheckArguments) -> Checked:
    """Check the set and, when asked, compare it with the zoo."""
    from llgbm_shards.check_set import check  # noqa: PLC0415 - pyarrow, only when it is used

    report = check(
        arguments.out,
        level=arguments.level,
        sample=arguments.sample,
        seed=arguments.seed,
        expect_digest=arguments.expect_digest,
    )
    if arguments.against is None:
        return Checked(report=report, against=None, problem="")
    from llgbm_pack.upkeep.compare import compare_with_zoo  # noqa: PLC0415

    try:
        against = compare_with_zoo(arguments.out, arguments.against)
    except LlgbmError as error:
        return Checked(report=report, against=None, problem=str(error))
    return Checked(report=report, against=against, problem="")
