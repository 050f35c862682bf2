"""Which rank of how many this process is."""

from __future__ import annotations

import os

import torch

from llgbm_shards.errors import UsageError


def resolve_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, else of torch.distributed, else of RANK and WORLD_SIZE, else (0, 1).

    Raises:
        UsageError: Only one of the two is known, or they contradict each other.
    """
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = _environment("RANK"), _environment("WORLD_SIZE")
        if rank is None and world_size is None:
            return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise UsageError(
            "rank and world size do not fit together",
            expected="both, with 0 <= rank < world_size",
            got=f"rank={rank} world_size={world_size}",
            do="Give both as arguments, or start with torchrun, which sets RANK and WORLD_SIZE.",
        )
    return rank, world_size


def _environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None or text == "":
        return None
    if not text.isdecimal():
        raise UsageError("not a number", where=f"environment variable {name}", got=repr(text)[:80])
    return int(text)
