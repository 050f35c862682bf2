"""One padded condition, as readers rebuild it."""

import numpy as np

from llgbm_shards.texts import rebuild_into


def rebuild(ids, spec, length):
    """``input_ids`` and ``attention_mask`` of one text's bare ids, each (length,) int64."""
    input_ids, mask = np.empty((1, length), np.int64), np.empty((1, length), np.int64)
    rebuild_into([ids], spec, input_ids, mask)
    return input_ids[0], mask[0]
