"""How commands talk: their output options, and text for a terminal, which obeys the escape sequences in names."""

from __future__ import annotations

import codecs
import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import click

_ESCAPE: Final = "llgbm-escape"
#: An option that is a directory, which is there.
FOLDER: Final = click.Path(path_type=Path, exists=True, file_okay=False)
Command = Callable[..., int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """How a command talks."""

    format: str  # ``text`` or ``json``, for the result on stdout
    quiet: bool  # no progress on stderr
    verbose: bool  # more detail in the text result

    def say(self, message: str) -> None:
        """A progress message on stderr."""
        if not self.quiet:
            click.echo(message, err=True)


def decorator(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Click's options as one decorator; the help shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_OUTPUT_OPTIONS: Final = decorator(
    click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True),
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
    click.option("-v", "--verbose", is_flag=True, help="Tell more."),
    click.version_option(package_name="llgbm-pack"),
)  # fmt: skip


def output_options(command: Command) -> Command:
    """Add --format, -q, -v, handed to the command as ``output``, and --version."""

    @functools.wraps(command)
    def wrapped(output_format: str, quiet: bool, verbose: bool, **kwargs: Any) -> int:
        output = Output(format=output_format, quiet=quiet, verbose=verbose)
        return command(output=output, **kwargs)

    return _OUTPUT_OPTIONS(wrapped)


def human_bytes(size: float) -> str:
    """1536 -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def printable(text: str) -> str:
    """Show control characters, direction marks and bytes that are no text as escapes; line ends and tabs stay."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def printable_json(value: object) -> str:
    """JSON that is valid UTF-8 whatever names are in it, and carries no control character but line ends."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text
    )


def escape_unwritable(stream: TextIO) -> None:
    """Let a stream write what its encoding has no form for as escapes, which JSON reads again."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ESCAPE)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPE, _escaped)
