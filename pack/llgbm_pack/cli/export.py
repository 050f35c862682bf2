"""The options of ``export``, its progress, and its result as text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from llgbm_pack.cli.output import Output, decorator, human_bytes

if TYPE_CHECKING:
    from llgbm_pack.look.export import ExportReport

_LINE_EVERY_S: Final = 10.0

export_options: Final = decorator(
    click.argument("out"),
    click.argument("dest"),
    click.argument("keys", metavar="[KEY]...", nargs=-1),
    click.option("--all", "everything", is_flag=True, help="The whole zoo, as a tree."),
    click.option("--deltas", is_flag=True, help="Also write a delta cache, into DEST.deltas beside DEST."),
)


def run_export(out: str, dest: str, keys: tuple[str, ...], output: Output, **options: Any) -> ExportReport:
    """Export, with a line on stderr now and then."""
    from llgbm_pack.look.export import export  # noqa: PLC0415 - only when it is used

    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _LINE_EVERY_S:
            last = now
            output.say(f"{human_bytes(done)} of {human_bytes(total)} exported")

    return export(out, dest, keys, progress=progress, **options)


def render_export(report: ExportReport) -> str:
    """What ``export`` prints."""
    stood = f" ({report.standing} of the files stood there already)" if report.standing else ""
    lines = [
        f"exported   {report.checkpoints} checkpoints, {human_bytes(report.bytes)} of weights, to {report.dest}{stood}"
    ]
    if report.deltas:
        lines.append(f"deltas     {report.num_deltas}, a delta cache in {report.deltas}")
    lines += [
        f"not exact  {row['checkpoint']} ({row['key']}): packed from {row['source_dtype']}, written in {row['dtype']}"
        for row in report.inexact
    ]
    if full := len(report.texts_full):
        lines.append(
            f"texts      {full} checkpoints have as many as --max-texts let in: their zoo may have had more"
        )
    if report.texts_apart:
        lines.append(
            "texts      differ within a folder: they lie in NAME.prompts.json beside these weights, which no build reads"
        )
        lines += [f"           {checkpoint}" for checkpoint in report.texts_apart]
    return "\n".join(lines)
