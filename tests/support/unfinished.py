"""Builds of a zoo of thirty that are broken off somewhere, a sample a shard."""

from __future__ import annotations

import pytest

from llgbm_pack import PackOptions, build
from llgbm_shards.names import TEMPORARY

COUNT = 30


def options(root, out, **more):
    return PackOptions(
        **{"zoo": root / "zoo", "out": out, "deltas": root / "deltas", "shard_bytes": 1, **more}
    )


def args(root, out, workers):
    return ["build", root / "zoo", out, "--deltas", root / "deltas", "--shard-bytes", 1, "--workers", workers]


def shards(out):
    return len(list(out.glob("train-*.tar")))


def leftovers(out):
    return [path for path in out.rglob("*") if path.name.startswith(TEMPORARY)]


class Stop(BaseException):
    """Not an error: something from outside, like a signal."""


class StopAfter:
    """A progress that ends the build after so many samples."""

    def __init__(self, samples):
        self._left = samples

    def planned(self, plan, done):
        pass

    def advanced(self, samples, source_bytes):
        if samples >= self._left:
            raise Stop


def broken_off(root, samples=10, **more):
    """An unfinished build of ``root/out`` with some shards done."""
    with pytest.raises(Stop):
        build(options(root, root / "out", workers=1, **more), progress=StopAfter(samples))
    assert 0 < shards(root / "out") < COUNT
    assert not (root / "out" / "shardset.json").exists()
    return root / "out"
