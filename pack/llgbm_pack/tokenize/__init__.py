"""Weights and texts as tokens.

In come tensors and strings; out go bodies, scales and ids, equal to the bit on every machine. May import sources, the
loader and the shards.
"""
