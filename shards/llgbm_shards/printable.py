"""Text for a terminal: names come from data, and a terminal obeys the escape sequences in them."""

from __future__ import annotations

import codecs
import io
import json
from typing import Final, TextIO

_ESCAPE: Final = "llgbm-escape"


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
