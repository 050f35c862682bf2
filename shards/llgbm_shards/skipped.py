"""skipped.json: the checkpoints that a build found and did not pack."""

from __future__ import annotations

from typing import Final

from llgbm_shards.canonical import load_json
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.names import SKIPPED_NAME

MAX_SKIPPED_BYTES: Final = 1 << 30


def skipped_checkpoints(data: bytes) -> list[str]:
    """Paths of the checkpoints in a list.

    Raises:
        DamageError: It is none.
    """
    try:
        rows = load_json(data, where=SKIPPED_NAME, max_bytes=MAX_SKIPPED_BYTES)["skipped"]
        paths: list[str] = [row["checkpoint"] for row in rows]
        if not all(isinstance(path, str) for path in paths):
            raise TypeError("a path that is no text")
    except (HeaderError, KeyError, TypeError) as error:
        raise DamageError("not a list of skipped checkpoints", shard=SKIPPED_NAME, got=str(error)) from error
    return paths
