"""Rows of checkpoints and reasons, told once for each reason that many of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

#: Rows of one reason that are told one by one, and names that stand for more of them.
_FEW: Final = 3


def grouped(rows: Iterable[tuple[str, str]]) -> list[str]:
    """One line a row, or one line for all the rows of a reason.

    Args:
        rows: Checkpoint and reason; the checkpoint is "" where the reason concerns none in particular.

    Returns:
        Lines; those of one reason stand together, where its first row was.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for checkpoint, reason in rows:
        groups[_without_own_file(checkpoint, reason)].append((checkpoint, reason))
    lines: list[str] = []
    for common, same in groups.items():
        lines += [_line(same, common)] if len(same) > _FEW else [one_line(*row) for row in same]
    return lines


def one_line(checkpoint: str, reason: str) -> str:
    """The line of one row."""
    return f"{checkpoint}: {reason}" if checkpoint else reason


def _line(same: list[tuple[str, str]], common: str) -> str:
    names = ", ".join(checkpoint for checkpoint, _ in same[:_FEW])
    return f"{len(same)} checkpoints ({names}, ...): {common}"


def _without_own_file(checkpoint: str, reason: str) -> str:
    """Where an adapter is a file among others, its reasons begin with that file's own name."""
    return reason.removeprefix(f"{PurePosixPath(checkpoint).name}.safetensors: ")
