"""What each kind of option of a build may be; any other value is a UsageError."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from llgbm_shards.arguments import as_index, is_one_of, is_text, local_path, require, shown
from llgbm_shards.errors import UsageError
from llgbm_shards.public import without_credentials


def path_option(name: str, value: object, *, optional: bool) -> Path | None:
    """A path that a set can record, which is UTF-8."""
    if value is None and optional:
        return None
    path = local_path(name, value)
    if not is_text(str(path)):
        shown_bytes = os.fsencode(path).decode("utf-8", "backslashreplace")
        do = "Rename the directory, or link to it."
        raise UsageError("the path is not UTF-8", where=name, got=shown_bytes, do=do)
    return path


def tokenizer_option(value: object) -> str | None:
    """The name or directory of a text tokenizer."""
    if value is None:
        return None
    local_path("text_tokenizer", value)
    require(value != "", "text_tokenizer", "a name or a directory", value)
    return str(value)


def strings_option(name: str, value: object) -> tuple[str, ...]:
    """Strings, in any sequence."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError("not a sequence of strings", where=name, expected="a tuple", got=shown(value))
    strings = tuple(value)
    if not all(map(is_text, strings)):
        raise UsageError(
            "not a sequence of strings", where=name, expected="UTF-8 text each", got=shown(strings)
        )
    return strings


def pairs_option(value: object) -> tuple[tuple[str, str], ...]:
    """Pairs of prefixes, (old, new); no old one is empty."""
    rows = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    pairs = [strings_option("maps", row) for row in rows]
    if not all(len(pair) == 2 and pair[0] for pair in pairs):
        raise UsageError("not pairs", where="maps", expected="(old, new) prefixes", got=shown(value))
    return tuple((old, new) for old, new in pairs)


def count_option(name: str, value: object, most: int, *, least: int = 1) -> int:
    """A whole number from ``least`` to ``most``."""
    number = as_index(value)
    if number is None or number < least:
        raise UsageError(f"must be at least {least}", where=name, expected="a whole number", got=shown(value))
    require(number <= most, name, f"at most {most}", value)
    return number


def choice_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is none of those allowed."""
    if not is_one_of(value, allowed):
        raise UsageError("unknown value", where=name, expected=", ".join(allowed), got=shown(value))


def last_component(path: Path | str | None) -> str:
    """What a set may tell of a path: its last component, without credentials."""
    if path is None:
        return ""
    told = os.path.realpath(path) if Path(path).exists() else without_credentials(str(path))
    return Path(told).name.encode(errors="backslashreplace").decode()


def refuse_overlap(zoo: Path, out: Path, what: str = "zoo") -> None:
    """A set inside the zoo would be walked as part of it; a zoo inside the set would be swapped away."""
    inside, outside = Path(os.path.realpath(out)), Path(os.path.realpath(zoo))
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(
            f"{what} and output overlap",
            where=str(out),
            expected=f"a directory outside the {what}",
            do="Choose another OUT.",
        )
