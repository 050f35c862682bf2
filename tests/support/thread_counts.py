"""Stands in for ``pool_worker.pack``: packs the shard as that does, and writes down how many threads it may use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from llgbm_pack.packing import pool_worker
from llgbm_pack.plan.values import ShardJob
from llgbm_pack.tokenize.encode import PieceEncoder


def pack_and_count(number: int, job: ShardJob) -> None:
    """Leave torch's and the text tokenizers' counts with the first checkpoint of the shard."""
    counts: dict[str, Any] = {"texts": os.environ.get("RAYON_NUM_THREADS")}
    encode = PieceEncoder.encode

    def watched(self: PieceEncoder, *args: Any) -> None:
        counts["torch"] = torch.get_num_threads()
        encode(self, *args)

    PieceEncoder.encode = watched  # type: ignore[method-assign]
    try:
        pool_worker.pack(number, job)
    finally:
        PieceEncoder.encode = encode  # type: ignore[method-assign]
    Path(job.samples[0].weights.parent, "threads.json").write_text(json.dumps(counts))
