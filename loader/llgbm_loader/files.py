"""Open shards and exact reads from them. Never mmap: a truncated file would be a SIGBUS."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from llgbm_shards.errors import StorageError
from llgbm_shards.held import HeldShard
from llgbm_shards.storage import Target, read_into

_MAX_OPEN: Final = 16


class ShardFiles:
    """Descriptors of recently read shards, for one thread. Opened when first read, closed when long unused."""

    def __init__(self, shards: Sequence[HeldShard]) -> None:
        self._shards = shards
        self._open: OrderedDict[int, int] = OrderedDict()
        # A thread's reader dies with its thread, and nobody closes it.
        weakref.finalize(self, _close_all, self._open)

    def read(self, shard: int, targets: Sequence[Target], offset: int, *, verify: bool = True) -> int:
        """Fill the targets, one after the other, from a shard; returns how many bytes it has too few.

        With ``verify`` the caller verifies the bytes by their digest. Without, the file must still be the one that was
        opened when they are read: a file system sets the times before it takes the bytes of a write.

        Raises:
            DamageError: The shard is missing or was replaced; key and member are for the caller to add.
            StorageError: It cannot be read.
        """
        try:
            fd = self._descriptor(shard)
            missing = read_into(fd, targets, offset)
            while not verify and self._shards[shard].prove(fd, trusted=True):
                missing = read_into(fd, targets, offset)
            return missing
        except OSError as error:
            raise StorageError(
                error.strerror or str(error),
                where=self._shards[shard].name,
                do="Check permissions, the disk and the network.",
            ) from error

    def _descriptor(self, shard: int) -> int:
        fd = self._open.get(shard)
        if fd is None:
            fd = self._shards[shard].open()
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
