"""What batches take of this machine's memory, judged before any of it is asked for."""

from __future__ import annotations

import os

from llgbm_loader.batch import BatchPlan
from llgbm_shards.errors import UsageError


def refuse_too_large(plan: BatchPlan, rows: int, batches: int) -> None:
    """Refuse batches that this machine's whole memory could not hold, whatever else is in it.

    Args:
        plan: What a batch looks like.
        rows: Rows of a batch.
        batches: Batches that are held at once.

    Raises:
        UsageError: They could not be held.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = plan.host_bytes(rows) * batches
    if needed > memory:
        raise UsageError(
            "more than this machine's memory",
            where="options batch_size, prefetch_batches, max_text_length and num_texts",
            expected=f"at most {memory} bytes for {batches} batches of {rows} rows",
            got=f"{needed} bytes",
            do="Take fewer or smaller ones.",
        )
