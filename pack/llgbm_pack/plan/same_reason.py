"""Rows of checkpoints and reasons, told once for each reason that many of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

#: Rows of one reason that are told one by one, and names that stand for more of them.
_FEW: Final = 3


def grouped(rows: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each (checkpoint, reason), or one line for all the checkpoints of a reason.

    The checkpoint is "" where the reason concerns none in particular. The lines of one reason stand together, where
    its first row was.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for checkpoint, reason in rows:
        groups[_without_own_file(checkpoint, reason)].append((checkpoint, reason))
    return [line for common, same in groups.items() for line in _lines(same, common)]


def one_line(checkpoint: str, reason: str) -> str:
    """The line of one row."""
    return f"{checkpoint}: {reason}" if checkpoint else reason


def _lines(same: list[tuple[str, str]], common: str) -> list[str]:
    named = {checkpoint: one_line(checkpoint, reason) for checkpoint, reason in same if checkpoint}
    nameless = [reason for checkpoint, reason in same if not checkpoint]
    lines = list(named.values())
    if len(named) > _FEW:
        lines = [f"{len(named)} checkpoints ({', '.join(list(named)[:_FEW])}, ...): {common}"]
    return lines + ([f"{common} ({len(nameless)} times)"] if len(nameless) > _FEW else nameless)


def _without_own_file(checkpoint: str, reason: str) -> str:
    """Where an adapter is a file among others, its reasons begin with that file's own name."""
    return reason.removeprefix(f"{PurePosixPath(checkpoint).name}.safetensors: ")
