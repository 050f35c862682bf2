"""Everything that is decided before a byte is written: which checkpoints, which layout, which shard, which delta.

In come options; out goes a plan of plain values, or one refusal that lists all that is wrong. May import tokenize, deltas
and sources.
"""
