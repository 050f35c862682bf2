"""Options of the command line, and how their texts become values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from llgbm_pack.cli.output import Output
from llgbm_pack.plan.options import DTYPES, MISSING_DELTA, SPLIT_BY, PackOptions
from llgbm_shards.layout import TOKEN_ORDERS
from llgbm_shards.names import FORMS

_UNITS: Final = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildArguments:
    """What ``build`` was asked for."""

    options: PackOptions
    dry_run: bool


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes with a unit: 512MiB, 1GiB, 2000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size; write for example 512MiB or 1GiB", param, ctx)
        return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


class Pair(click.ParamType):  # type: ignore[type-arg]
    """OLD=NEW."""

    name = "old=new"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        old, equals, new = str(value).partition("=")
        if not equals or not old:
            self.fail(f"{value!r} is not OLD=NEW", param, ctx)
        return old, new


class Split(click.ParamType):  # type: ignore[type-arg]
    """val=FRACTION."""

    name = "val=fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text."""
        match = re.fullmatch(r"(?:val=)?(0?\.\d+|0)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a split; write for example val=0.1", param, ctx)
        return float(match[1])


class CountOrAll(click.ParamType):  # type: ignore[type-arg]
    """A positive count, or ``all``."""

    name = "n|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text; 0 stands for all."""
        if value == "all":
            return 0
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a positive count nor `all`", param, ctx)
        return int(value)


_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_COUNT = click.IntRange(min=1)

_BUILD_OPTIONS: Final = (
    click.argument("zoo", type=_FOLDER),
    click.argument("out", type=_PATH),
    click.option("--deltas", type=_FOLDER, metavar="DIR", help="Delta cache to join; without it no deltas are packed."),
    click.option("--texts", type=_FOLDER, metavar="DIR", help="Text files by dataset, for zoos that keep texts apart."),
    click.option("--text-tokenizer", metavar="NAME|DIR", help="transformers tokenizer; without it no text ids are packed."),
    click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="Repeatable. [default: prompt]"),
    click.option("--joiner", default="\n", help="Between prompt and answer. [default: newline]"),
    click.option("--missing-delta", type=click.Choice(MISSING_DELTA), default="error", show_default=True),
    click.option("--map", "maps", type=Pair(), multiple=True, metavar="OLD=NEW", help="Rewrite a prefix of delta paths."),
    click.option("--token-order", type=click.Choice(TOKEN_ORDERS), default="sorted", show_default=True),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Cast every source."),
    click.option("--rank", type=_COUNT, metavar="R", help="Pad checkpoints of lower rank to R."),
    click.option("--chunk", type=_COUNT, metavar="C", help="Columns of a token. [default: gcd of the module widths]"),
    click.option("--alpha", type=float, metavar="A", help="lora_alpha of checkpoints without a config."),
    click.option("--max-texts", type=CountOrAll(), default="1024", show_default=True, help="Texts kept of a checkpoint."),
    click.option("--split", type=Split(), default="0", metavar="val=0.1", help="Fraction that goes to the split val."),
    click.option("--split-by", type=click.Choice(SPLIT_BY), default="task", show_default=True),
    click.option("--include", multiple=True, metavar="GLOB", help="Only checkpoints whose path matches; repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave matching checkpoints out; repeatable."),
    click.option("--limit", type=_COUNT, metavar="N", help="Only the first N checkpoints in path order."),
    click.option("--shard-bytes", type=Size(), default="1GiB", show_default=True, help="Target size of a shard."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--workers", type=_COUNT, metavar="N", help="Worker processes. [default: usable cores]"),
    click.option("--dry-run", is_flag=True, help="Print the plan; write nothing."),
    click.option("--strict", is_flag=True, help="Commit nothing if anything is skipped or warned about."),
    click.option("--overwrite", is_flag=True, help="Replace a finished set once the new one is complete."),
)  # fmt: skip


#: Options that do nothing without another one, which then was forgotten or mistyped.
_NEEDS: Final = {
    "forms": "text_tokenizer",
    "joiner": "text_tokenizer",
    "maps": "deltas",
    "missing_delta": "deltas",
    "split_by": "split",
}


def _refuse_useless(values: dict[str, Any]) -> None:
    context = click.get_current_context()
    for name, needed in _NEEDS.items():
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and not values[needed]:
            flag, of = (_flag(option, context) for option in (name, needed))
            raise click.UsageError(f"{flag} is of no use without {of}.")


def _flag(name: str, context: click.Context) -> str:
    return next(option.opts[0] for option in context.command.params if option.name == name)


def build_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the arguments and options of ``build``, handed to the command as ``arguments``."""

    @functools.wraps(command)
    def wrapped(dry_run: bool, output: Output, **values: Any) -> int:
        _refuse_useless(values)
        values["forms"] = values["forms"] or ("prompt",)
        values["max_texts"] = values["max_texts"] or None
        arguments = BuildArguments(options=PackOptions(**values), dry_run=dry_run)
        return command(arguments=arguments, output=output)

    for option in reversed(_BUILD_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


_REPAIR_OPTIONS: Final = (
    click.argument("out", type=_FOLDER),
    click.option("--zoo", type=_FOLDER, required=True, metavar="DIR", help="The zoo the set was packed from."),
    click.option("--deltas", type=_FOLDER, metavar="DIR", help="The delta cache it was packed with."),
    click.option("--texts", type=_FOLDER, metavar="DIR", help="The directory of text files it was packed with."),
    click.option("--text-tokenizer", metavar="NAME|DIR", help="Needed only when tokenizer/ of the set is damaged."),
    click.option("--map", "maps", type=Pair(), multiple=True, metavar="OLD=NEW", help="As for the build; repeatable."),
    click.option("--expect-digest", metavar="D", help="Digest that shardset.json must have; proves a lost one."),
)  # fmt: skip


def repair_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the arguments and options of ``repair``."""
    for option in reversed(_REPAIR_OPTIONS):
        command = option(command)
    return command
