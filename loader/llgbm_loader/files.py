"""Open shards and exact reads from them. Never mmap: a truncated file would be a SIGBUS."""

from __future__ import annotations

import os
import posixpath
import stat
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from llgbm_shards.errors import DamageError, StorageError

_MAX_OPEN: Final = 16
#: Anything with the buffer protocol that can be written to.
Target = Any


class ShardFiles:
    """Descriptors of recently read shards, for one thread. Opened when first read, closed when long unused."""

    def __init__(self, shards: Sequence[str]) -> None:
        self._shards = shards
        self._open: OrderedDict[int, int] = OrderedDict()
        # A thread's reader dies with its thread, and nobody closes it.
        weakref.finalize(self, _close_all, self._open)

    def read(self, shard: int, targets: Sequence[Target], offset: int) -> int:
        """Fill the targets, one after the other, from a shard.

        Returns:
            How many bytes the shard has too few.

        Raises:
            DamageError: The shard is missing; key and member are for the caller to add.
            StorageError: It cannot be read.
        """
        try:
            return _fill(self._descriptor(shard), targets, offset)
        except FileNotFoundError:
            raise DamageError("the shard is missing", shard=posixpath.basename(self._shards[shard])) from None
        except OSError as error:
            raise StorageError(
                error.strerror or str(error),
                where=self._shards[shard],
                do="Check permissions, the disk and the network.",
            ) from error

    def _descriptor(self, shard: int) -> int:
        fd = self._open.get(shard)
        if fd is None:
            fd = _open_regular(self._shards[shard])
            self._open[shard] = fd
            if len(self._open) > _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return fd

    def close(self) -> None:
        """Close all descriptors; a later read opens anew."""
        _close_all(self._open)


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _open_regular(path: str) -> int:
    # O_NONBLOCK: opening a FIFO that stands in a shard's place must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DamageError("not a regular file", shard=posixpath.basename(path))
    return fd


def _fill(fd: int, targets: Sequence[Target], offset: int) -> int:
    """Read until all targets are full; returns how many bytes the file has too few."""
    views = [memoryview(target).cast("B") for target in targets]
    views = [view for view in views if len(view)]
    while views:
        count = os.preadv(fd, views, offset)
        if not count:
            break
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]
    return sum(map(len, views))
