"""What a directory that a set goes into may hold, and where results about a set may not go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from llgbm_shards.errors import UsageError
from llgbm_shards.names import (
    BUILT_PARITY,
    BUILT_SHARD,
    CARD_NAME,
    INDEX_NAME,
    PACK_DIRECTORY,
    RECORD_NAME,
    SKIPPED_NAME,
    TEMPORARY,
    TOKENIZER_DIRECTORY,
)
from llgbm_shards.storage import storage_errors

_OF_A_SET: Final = {PACK_DIRECTORY, RECORD_NAME, INDEX_NAME, SKIPPED_NAME, CARD_NAME, TOKENIZER_DIRECTORY}


def refuse_foreign(out: Path) -> None:
    """Refuse to write among, or to replace, files that are not of a shard set.

    Raises:
        UsageError: ``out`` is a file, or a directory that holds something else than a set or the beginning of one.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("the output is not a directory", where=str(out), do="Choose another OUT.")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if not _of_a_set(name)]
    if names and not {PACK_DIRECTORY, RECORD_NAME} & set(names):
        foreign = names
    if foreign:
        raise UsageError(
            "the output directory holds files that are not of a shard set",
            where=str(out),
            expected="a new or empty directory, or a set",
            got=", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else ""),
            do="Choose another OUT, or move these files away.",
        )


def refuse_no_set(out: Path) -> None:
    """Refuse to mend a directory that holds no file by which a set is known.

    Raises:
        UsageError: It does not; then what else is there is not ours to touch.
        StorageError: It cannot be listed.
    """
    with storage_errors(out):
        names = {path.name for path in out.iterdir()}
    if not names & {RECORD_NAME, INDEX_NAME, SKIPPED_NAME} and not any(map(BUILT_SHARD.fullmatch, names)):
        raise UsageError("not a shard set", where=str(out), do="Name the directory that a build wrote.")


def _of_a_set(name: str) -> bool:
    built = BUILT_SHARD.fullmatch(name) or BUILT_PARITY.fullmatch(name)
    return name in _OF_A_SET or name.startswith(TEMPORARY) or built is not None


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
