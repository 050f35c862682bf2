"""Where results of a set may not go: into a set. A committed set never changes."""

from __future__ import annotations

import os
from pathlib import Path

from llgbm_shards.errors import UsageError
from llgbm_shards.names import RECORD_NAME


def refuse_in_set(target: Path, option: str) -> None:
    """Refuse a file or directory to be written that lies in a committed set, whichever it is.

    Raises:
        UsageError: It does.
    """
    for directory in Path(os.path.realpath(target)).parents:
        if (directory / RECORD_NAME).exists():
            raise UsageError(
                "a committed set never changes",
                where=str(target),
                expected=f"a place outside {directory}",
                do=f"Choose another {option}.",
            )
