"""The command line: what is printed where, and with which exit code.

stdout carries the result, stderr progress and messages. Exit codes: 0 done, 1 problems found, 2 usage, 3 could
not do the work, 130 interrupted. Heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from llgbm_pack.cli.check import check_options, run_check
from llgbm_pack.cli.export import export_options, render_export, run_export
from llgbm_pack.cli.options import build_options, overlay_options, repair_options
from llgbm_pack.cli.output import Output, escape_unwritable, output_options, printable, printable_json
from llgbm_pack.plan.options import PackOptions
from llgbm_pack.plan.overlay_options import OverlayOptions
from llgbm_shards.errors import LlgbmError
from llgbm_shards.public import without_credentials

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Guarded(click.Command):
    """A program in which every error of the project ends in one message and its exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        escape_unwritable(sys.stdout)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except click.ClickException as error:
            said = io.StringIO()
            error.show(file=said)
            click.echo(printable(without_credentials(said.getvalue())), err=True, nl=False)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; run the same command again to go on", err=True)
            code = 130
        except LlgbmError as error:
            click.echo(printable(f"error: {error}"), err=True)
            code = error.exit_code
        except (BrokenPipeError, SystemExit):
            # The reader is gone. Left to itself, click ends with 1, which here means that something is not sound.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 3
        except (OSError, MemoryError) as error:
            # 1 would say that something is not sound; this says nothing of it.
            click.echo(printable(f"error: the work could not be done: {error or 'out of memory'}"), err=True)
            code = 3
        sys.exit(code if isinstance(code, int) else 0)


class _Program(_Guarded, click.Group):
    """One with commands."""


def _emit(output: Output, value: dict[str, Any], text: Callable[[], str]) -> None:
    """Print a result in the format asked for."""
    if output.format == "json":
        click.echo(printable_json(value))
    else:
        click.echo(printable(text()))


@click.group(cls=_Program, context_settings=_CONTEXT)
@click.version_option(package_name="llgbm-pack", prog_name="llgbm-pack")
def main() -> None:
    """Pack LoRA teacher checkpoints, texts and deltas into shards once; check and inspect the shards."""


@main.command("build")
@output_options
@build_options
def build_command(options: PackOptions, dry_run: bool, output: Output) -> int:
    """Pack the checkpoints under ZOO into a shard set in OUT."""
    from llgbm_pack.cli.progress import progress_for
    from llgbm_pack.cli.render import render_pack, render_plan
    from llgbm_pack.packing.build import build, plan_build

    if dry_run:
        plan = plan_build(options)
        _emit(output, plan.to_json(), lambda: render_plan(plan, verbose=output.verbose))
        return plan.exit_code
    with progress_for(output) as progress:
        report = build(options, progress=progress)
    _emit(output, report.to_json(), lambda: render_pack(report, verbose=output.verbose))
    return report.exit_code


@main.command("overlay")
@output_options
@overlay_options
def overlay_command(options: OverlayOptions, output: Output) -> int:
    """Write newer deltas or texts of the set in BASE to OUT, an overlay that loaders read in place of the set's own."""
    from llgbm_pack.cli.progress import progress_for
    from llgbm_pack.cli.render import render_overlay
    from llgbm_pack.packing.overlay import overlay

    with progress_for(output) as progress:
        report = overlay(options, progress=progress)
    _emit(output, report.to_json(), lambda: render_overlay(report, verbose=output.verbose))
    return report.exit_code


@main.command("check")
@output_options
@check_options
def check_command(output: Output, **options: Any) -> int:
    """Say whether the shard set in OUT is sound, and list everything that is not."""
    from llgbm_pack.cli.render import render_check

    checked = run_check(**options)
    _emit(output, checked.to_json(), lambda: render_check(checked, verbose=output.verbose))
    return checked.exit_code


#: The same as a program of its own.
check_main = _Guarded(
    "llgbm-check",
    context_settings=_CONTEXT,
    callback=check_command.callback,
    params=check_command.params,
    help=check_command.help,
)


@main.command("repair")
@repair_options
@output_options
def repair_command(output: Output, **options: Any) -> int:
    """Put damaged and missing files of the set in OUT back, to the bit, from the sources it was packed from."""
    from llgbm_pack.cli.render import render_repair
    from llgbm_pack.upkeep.repair import repair
    from llgbm_pack.upkeep.repair_shards import RepairOptions

    report = repair(RepairOptions(**options), say=output.say)
    _emit(output, report.to_json(), lambda: render_repair(report))
    return report.exit_code


@main.command("inspect")
@click.argument("out")
@click.argument("key", required=False)
@output_options
def inspect_command(out: str, key: str | None, output: Output) -> int:
    """Summarise the set in OUT, or show the sample KEY of it."""
    from llgbm_pack.cli.render import render_sample, render_set
    from llgbm_pack.look.inspect import describe_sample, describe_set

    if key is None:
        summary = describe_set(out)
        _emit(output, summary, lambda: render_set(summary))
    else:
        sample = describe_sample(out, key)
        _emit(output, sample, lambda: render_sample(sample))
    return 0


@main.command("export")
@export_options
@output_options
def export_command(output: Output, **options: Any) -> int:
    """Write checkpoints of the set in OUT to DEST again, byte for byte.

    One KEY gives a directory that PEFT loads, several KEYs or --all the tree of the zoo. Run again, it goes on where it stopped.
    """
    report = run_export(output=output, **options)
    _emit(output, report.to_json(), lambda: render_export(report))
    return 0


@main.command("stats")
@click.argument("out")
@click.option("-o", "file", required=True, metavar="FILE", help="safetensors file to write.")
@click.option("--by-task", is_flag=True, help="Also for each task alone.")
@output_options
def stats_command(out: str, file: str, by_task: bool, output: Output) -> int:
    """Write means, stds and criterion weights of the tokens of the set in OUT."""
    from llgbm_pack.cli.render import render_stats
    from llgbm_pack.look.stats import write_stats

    report = write_stats(out, file, by_task=by_task)
    _emit(output, report.to_json(), lambda: render_stats(report))
    return 0


@main.command("bench")
@click.argument("out")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--step-ms", type=click.FloatRange(min=0.01), default=200.0, show_default=True, help="Step to feed."
)
@click.option("--readers", type=click.IntRange(min=1), default=4, show_default=True, help="Reader threads.")
@click.option("--verify", type=click.Choice(["full", "off"]), default="full", show_default=True)
@output_options
def bench_command(out: str, output: Output, **options: Any) -> int:
    """Measure how fast the set in OUT can be streamed here, and what limits it."""
    from llgbm_pack.cli.render import render_bench
    from llgbm_pack.look.bench import bench_set

    report = bench_set(out, **options)
    _emit(output, report.to_json(), lambda: render_bench(report))
    return 0


@main.command("demo")
@click.argument("directory")
@output_options
def demo_command(directory: str, output: Output) -> int:
    """Make a small real zoo with deltas and a text tokenizer in DIRECTORY (extra: demo)."""
    from dataclasses import asdict
    from pathlib import Path

    from llgbm_pack.demo.make import make_demo

    report = make_demo(Path(directory), output.say)
    text = (
        f"{report.num_checkpoints} checkpoints in {report.zoo}, {report.num_deltas} deltas in {report.deltas}, "
        f"text tokenizer in {report.tokenizer} ({report.seconds:.1f} s)"
    )
    _emit(output, asdict(report), lambda: text)
    return 0
