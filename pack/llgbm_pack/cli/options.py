"""Options of the command line, and how their texts become values."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from llgbm_pack.cli.output import FOLDER, Command, Output, decorator
from llgbm_pack.plan.options import DTYPES, MISSING_DELTA, SPLIT_BY, PackOptions
from llgbm_pack.plan.overlay_options import OVERLAY_MISSING_DELTA, OverlayOptions
from llgbm_shards.layout import TOKEN_ORDERS
from llgbm_shards.names import FORMS, MOST_PARITY

_UNITS: Final = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    """Bytes with a unit: 512MiB, 1GiB, 2000000."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size; write for example 512MiB or 1GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def pair(text: str) -> tuple[str, str]:
    """OLD=NEW."""
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise click.BadParameter(f"{text!r} is not OLD=NEW")
    return old, new


def split(text: str) -> float:
    """val=FRACTION."""
    match = re.fullmatch(r"(?:val=)?(0?\.\d+|0)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a split; write for example val=0.1")
    return float(match[1])


def count_or_all(text: str) -> int | None:
    """A positive count, or ``all``, which is None."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither a positive count nor `all`")
    return int(text)


_COUNT = click.IntRange(min=1)

_BUILD_OPTIONS: Final = decorator(
    click.argument("zoo", type=FOLDER),
    click.argument("out", type=click.Path(path_type=Path)),
    click.option("--deltas", type=FOLDER, metavar="DIR", help="Delta cache to join; without it no deltas are packed."),
    click.option("--texts", type=FOLDER, metavar="DIR", help="Text files by dataset, for zoos that keep texts apart."),
    click.option("--text-tokenizer", metavar="NAME|DIR", help="transformers tokenizer; without it no text ids are packed."),
    click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="Repeatable. [default: prompt]"),
    click.option("--joiner", default="\n", help="Between prompt and answer. [default: newline]"),
    click.option("--missing-delta", type=click.Choice(MISSING_DELTA), default="error", show_default=True),
    click.option("--map", "maps", type=pair, multiple=True, metavar="OLD=NEW", help="Rewrite a prefix of delta paths."),
    click.option("--token-order", type=click.Choice(TOKEN_ORDERS), default="sorted", show_default=True),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Cast every source."),
    click.option("--rank", type=_COUNT, metavar="R", help="Pad checkpoints of lower rank to R."),
    click.option("--chunk", type=_COUNT, metavar="C", help="Columns of a token. [default: gcd of the module widths]"),
    click.option("--alpha", type=float, metavar="A", help="lora_alpha of checkpoints without a config."),
    click.option("--max-texts", type=count_or_all, metavar="N|ALL", default="1024", show_default=True,
                 help="Texts kept of a checkpoint."),
    click.option("--split", type=split, default="0", metavar="val=0.1", help="Fraction that goes to the split val."),
    click.option("--split-by", type=click.Choice(SPLIT_BY), default="task", show_default=True),
    click.option("--include", multiple=True, metavar="GLOB", help="Only checkpoints whose path matches; repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave matching checkpoints out; repeatable."),
    click.option("--limit", type=_COUNT, metavar="N", help="Only the first N checkpoints in path order."),
    click.option("--shard-bytes", type=size, default="1GiB", show_default=True, help="Target size of a shard."),
    click.option("--parity", type=click.IntRange(0, MOST_PARITY), metavar="P", default=0, show_default=True,
                 help="Beside each shard, XORs that give one lost sample of each of P groups back."),
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


def _refuse_useless(values: dict[str, Any], names: Collection[str] = _NEEDS) -> None:
    context = click.get_current_context()
    for name in names:
        needed = _NEEDS[name]
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and not values[needed]:
            flag, of = (_flag(option, context) for option in (name, needed))
            raise click.UsageError(f"{flag} is of no use without {of}.")


def _flag(name: str, context: click.Context) -> str:
    return next(option.opts[0] for option in context.command.params if option.name == name)


def build_options(command: Command) -> Command:
    """Add the arguments and options of ``build``, handed to the command as ``options`` and ``dry_run``."""

    @functools.wraps(command)
    def wrapped(dry_run: bool, output: Output, **values: Any) -> int:
        _refuse_useless(values)
        values["forms"] = values["forms"] or ("prompt",)
        return command(options=PackOptions(**values), dry_run=dry_run, output=output)

    return _BUILD_OPTIONS(wrapped)


_OVERLAY_OPTIONS: Final = decorator(
    click.argument("base", type=FOLDER),
    click.argument("out", type=click.Path(path_type=Path)),
    click.option("--deltas", type=FOLDER, metavar="DIR", help="Delta cache to join; without it no deltas are packed."),
    click.option("--text-tokenizer", metavar="NAME|DIR", help="transformers tokenizer. [default: the base's]"),
    click.option("--form", "forms", multiple=True, type=click.Choice(FORMS),
                 help="Repeatable. [default: the base's, else prompt]"),
    click.option("--joiner", help="Between prompt and answer. [default: the base's, else newline]"),
    click.option("--texts", type=FOLDER, metavar="DIR", help="Newer text files by dataset. [default: the texts in the base]"),
    click.option("--missing-delta", type=click.Choice(OVERLAY_MISSING_DELTA), default="error", show_default=True),
    click.option("--map", "maps", type=pair, multiple=True, metavar="OLD=NEW", help="Rewrite a prefix of delta paths."),
    click.option("--workers", type=_COUNT, default=1, show_default=True, metavar="N", help="Worker processes."),
    click.option("--strict", is_flag=True, help="Commit nothing if anything is warned about."),
    click.option("--overwrite", is_flag=True, help="Replace a finished overlay once the new one is complete."),
)  # fmt: skip


def overlay_options(command: Command) -> Command:
    """Add the arguments and options of ``overlay``, handed to the command as ``options``."""

    @functools.wraps(command)
    def wrapped(output: Output, **values: Any) -> int:
        _refuse_useless(values, ("maps", "missing_delta"))
        values["forms"] = values["forms"] or None
        return command(options=OverlayOptions(**values), output=output)

    return _OVERLAY_OPTIONS(wrapped)


repair_options: Final = decorator(
    click.argument("out", type=FOLDER),
    click.option("--zoo", type=FOLDER, metavar="DIR", help="The zoo the set was packed from; without it, what parity gives."),
    click.option("--base", type=FOLDER, metavar="DIR", help="Of an overlay: the set it was made of."),
    click.option("--deltas", type=FOLDER, metavar="DIR", help="The delta cache it was packed with."),
    click.option("--texts", type=FOLDER, metavar="DIR", help="The directory of text files it was packed with."),
    click.option("--text-tokenizer", metavar="NAME|DIR", help="Needed only when tokenizer/ of the set is damaged."),
    click.option("--map", "maps", type=pair, multiple=True, metavar="OLD=NEW", help="As for the build; repeatable."),
    click.option("--expect-digest", metavar="D", help="Digest that shardset.json must have; proves a lost one."),
)  # fmt: skip
