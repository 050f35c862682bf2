"""Regular expressions from a config: PEFT's matching, kept to patterns that match in bounded time.

A config is anybody's file, and Python's ``re`` tries all ways to match one after another: a few characters, such as
``(a|a)*b``, can keep it busy for ever.
"""

from __future__ import annotations

import re
from typing import Final

from llgbm_shards.errors import CheckpointError

_MAX_PATTERN: Final = 400
_MAX_NAME: Final = 256
#: Bound on the ways to match: alternatives multiply, a repeat counts as many.
_MAX_WAYS: Final = 1 << 17
_WAYS_OF_A_REPEAT: Final = 32


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    r"""The pattern as PEFT matches it: ``(.*\.)?(pattern)$`` from the start of a name; refused if it may take long."""
    if len(pattern) > _MAX_PATTERN or _ways(pattern) > _MAX_WAYS:
        raise CheckpointError(
            "pattern too complex",
            where=where,
            expected=f"at most {_MAX_PATTERN} characters, 3 repeats and few alternatives, none of them repeated",
            got=f"{pattern!r:.80}",
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError) as error:
        raise CheckpointError(
            "not a regular expression", where=where, got=f"{pattern!r:.80}: {error}"
        ) from error


def matches(pattern: re.Pattern[str], name: str) -> bool:
    """Whether the pattern means the module; a name too long to be tried is refused."""
    if len(name) > _MAX_NAME:
        raise CheckpointError(
            "name too long for patterns",
            where=f"{name:.200}",
            expected=f"at most {_MAX_NAME} characters",
            got=f"{len(name)}",
        )
    return pattern.match(name) is not None


def _ways(pattern: str) -> int:
    """An upper bound on the order of ways to match, from the text alone."""
    plain = re.sub(r"\([^()|?*+{]*\)", "g", pattern.replace("(?:", "("))  # Groups without a choice.
    if re.search(r"\)[*+{]", plain):
        return _MAX_WAYS + 1  # A repeated choice: they multiply with every round.
    ways = int(2 ** plain.count("?") * _WAYS_OF_A_REPEAT ** len(re.findall(r"[*+{]", plain)))
    for part in re.split(r"[()]", plain):
        ways *= 1 + part.count("|")
    return ways
