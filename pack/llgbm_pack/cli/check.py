"""The options of ``check`` and ``llgbm-check``, and the work behind both. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llgbm_pack.cli.output import FOLDER, decorator
from llgbm_shards.errors import LlgbmError
from llgbm_shards.findings import LEVELS

if TYPE_CHECKING:
    from llgbm_pack.upkeep.compare import AgainstReport
    from llgbm_shards.findings import CheckReport

_LEVELS: Final = (
    "quick: presence, sizes, commit record, index, not the shards' bytes. full: every byte. "
    "deep: the values as well: shapes, padding, finite, ids in the vocabulary, norms, json schema."
)


def fraction(text: str) -> float:
    """A share of the samples: 5% or 0.05."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a share above 0; write for example 5%")
    return share


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What ``check`` found."""

    report: CheckReport  # about the set
    against: AgainstReport | None = None  # about the zoo, when it was asked for and the set can be opened
    problem: str = ""  # why the zoo was not compared

    @property
    def exit_code(self) -> int:
        """That of the report; 3 when the set is sound and the zoo could not be compared with it."""
        return self.report.exit_code or (3 if self.problem else 0)

    def to_json(self) -> dict[str, Any]:
        """The result as ``--format json`` prints it."""
        against = self.against.to_json() if self.against else None
        return {**self.report.to_json(), "against": against, "against_problem": self.problem}


check_options: Final = decorator(
    click.argument("out"),
    click.option("--level", type=click.Choice(LEVELS), default="full", show_default=True, help=_LEVELS),
    click.option("--sample", type=fraction, default="100%", metavar="5%", help="Read only this share of the samples."),
    click.option("--seed", type=int, help="Which share --sample reads; successive seeds tile the set. [default: the day]"),
    click.option("--against", type=FOLDER, metavar="ZOO", help="Say too which checkpoints of ZOO are new, changed or gone."),
    click.option("--expect-digest", metavar="D", help="Digest that shardset.json must have."),
)  # fmt: skip


def run_check(out: str, *, against: Path | None, **options: Any) -> Checked:
    """Check the set and, when asked, compare it with the zoo."""
    from llgbm_shards.check_set import check  # noqa: PLC0415 - pyarrow, only when it is used

    report = check(out, **options)
    if against is None:
        return Checked(report=report)
    from llgbm_pack.upkeep.compare import compare_with_zoo  # noqa: PLC0415

    try:
        return Checked(report=report, against=compare_with_zoo(out, against))
    except LlgbmError as error:
        return Checked(report=report, problem=str(error))
