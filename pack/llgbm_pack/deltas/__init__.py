"""The delta cache: its two forms on disk, and which checkpoint each delta belongs to.

In come a cache's directory and checkpoints' paths; out go verified vectors and joins. May import sources, the loader and
the shards.
"""
