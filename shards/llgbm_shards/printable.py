"""Text for a terminal: names come from data, and a terminal obeys the escape sequences in them."""

from __future__ import annotations

import json


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
