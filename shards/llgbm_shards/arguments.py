"""Arguments of public functions, refused at the entrance: what each kind of value may be has its one home here."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Collection
from numbers import Real
from pathlib import Path
from typing import Any, Final

from llgbm_shards.errors import UsageError

#: Most threads or processes of one kind: some hundred saturate any storage, and systems run out of threads at some thousand.
MOST_WORKERS: Final = 1024
#: Seeds that torch.manual_seed takes.
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
#: No count of anything is larger; it is sys.maxsize, which people write for "no limit".
MOST_COUNT: Final = 2**63 - 1
_LONGEST: Final = 200
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}:/")
#: Beyond these Python may refuse to print a number.
_MOST_BITS: Final = 1024


def require(right: bool, where: str, expected: str, got: object) -> None:
    """Raises UsageError unless ``right``."""
    if not right:
        raise UsageError("cannot be used", where=where, expected=expected, got=shown(got))


def shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:_LONGEST]


def whole_number(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """The value as an int: whole numbers of numpy and torch are as good as Python's; a bool, a float and a text are none.

    Raises:
        UsageError: Not a whole number, or less than ``least``, or more than ``most``.
    """
    number = as_index(value)
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        lower = "" if least is None else f", {least} or more"
        upper = "" if most is None else f", {most} or less"
        expected = f"a whole number{lower}{upper}"
        raise UsageError("cannot be used", where=f"option {name}", expected=expected, got=shown(value))
    return number


def as_index(value: Any) -> int | None:
    """The value as an int, as Python's own sequences take it as an index; None for others, and for a bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no bool."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64, which no fraction and no factor is
        return False


def is_one_of(value: object, allowed: Collection[object]) -> bool:
    """Whether a value is one of the allowed ones and of its type; arrays are compared with nothing."""
    return any(
        value is item or (isinstance(value, type(item)) and isinstance(item, str) and value == item)
        for item in allowed
    )


def is_text(value: object) -> bool:
    """Whether a value is a str that UTF-8 has a form for."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def local_path(name: str, value: object) -> Path:
    """The value as a path that the file system could have.

    Raises:
        UsageError: Neither a str nor a path of str; or with a NUL, or with what the system has no bytes for; or a URL, which
            would become a folder here.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    expected = "the path of a file or directory, a str or os.PathLike"
    if not isinstance(text, str):
        raise UsageError("not a path", where=name, expected=expected, got=shown(value))
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        expected = "characters that a file's name can have"
        raise UsageError("not a path", where=name, expected=expected, got=shown(value))
    # A URL that went through a Path has one slash; a single letter is the drive of a Windows path.
    if _URL.match(text):
        do = "Copy it to a disk of this machine, or mount it."
        raise UsageError(
            "a URL, not a path", where=name, expected="a path on this machine", got=shown(text), do=do
        )
    return Path(text)
