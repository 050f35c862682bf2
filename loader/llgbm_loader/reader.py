"""Reading one sample straight to where it is wanted: only wanted members, verified where they land."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.conditions import ConditionMaker
from llgbm_loader.files import ShardFiles
from llgbm_loader.hostframe import HostFramer
from llgbm_loader.stored import StoredMember, side_by_side
from llgbm_loader.tokens import TokenPlan
from llgbm_shards import ustar
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.layout import BIT_DTYPE
from llgbm_shards.members import SUFFIX, body_header
from llgbm_shards.npy import npy_header
from llgbm_shards.storage import Target

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection

#: Bodies are read, hashed and framed in pieces of this size: few enough bytes for a core's second-level cache, and
#: so many that readers do not wait for each other to call the next step (with a quarter of it they frame 1.6 times
#: slower).
BLOCK_BYTES: Final = 1 << 21


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Where one sample goes. What is None is not wanted."""

    body: NDArray[Any] | None = None  # (N, r, chunk) bits, filled with the stored bytes
    tokens: Tensor | None = None  # on the host, made of the body while it is read
    scales: NDArray[np.float32] | None = None  # (N, 2)
    delta: NDArray[np.float32] | None = None  # (hidden,)
    ids: NDArray[np.int64] | None = None  # (L,) or (K, L)
    mask: NDArray[np.int64] | None = None  # likewise

    def clear(self) -> None:
        """Zeros everywhere: what an invalid row shows."""
        for array in (self.body, self.scales, self.delta, self.ids, self.mask):
            if array is not None:
                array.fill(0)
        if self.tokens is not None:
            self.tokens.zero_()


@dataclass(frozen=True, slots=True)
class _Landing:
    """Where the bytes of one member go, from its tar header to its padding."""

    member: StoredMember
    head: memoryview
    data: memoryview
    padding: memoryview


class SampleReader:
    """Reads samples; for one thread, which owns its scratch memory and descriptors."""

    def __init__(
        self, selection: Selection, tokens: TokenPlan | None, conditions: ConditionMaker | None
    ) -> None:
        self._selection = selection
        self._plan = tokens
        self._conditions = conditions
        self._files = ShardFiles(selection.shards)
        self._scratch = bytearray()
        layout, common = selection.common.layout, selection.common
        self._prefix = {
            "body": body_header(layout),
            "scales": npy_header((layout.num_tokens, 2)),
            "texts": b"",
            "delta": npy_header((common.delta_width,)),
        }
        self._step = max(1, BLOCK_BYTES // max(1, layout.rank * layout.chunk * layout.itemsize))
        self._block = np.empty((self._step, layout.rank, layout.chunk), BIT_DTYPE[layout.dtype])

    def close(self) -> None:
        """Close the descriptors."""
        self._files.close()

    def read(self, number: int, epoch: int, row: Row, *, verify: bool) -> int:
        """Read one sample into a row; returns the bytes read.

        Raises:
            DamageError: With shard, key and member. The row is then in no defined state.
            StorageError: The shard cannot be read.
        """
        members = self._members(number)
        body = members.pop("body", None)
        # Small members first: their scales are needed while the body's blocks pass through the cache.
        runs = side_by_side(members.values())
        nbytes = sum(self._read_small(run, epoch, row, verify) for run in runs)
        return nbytes + (self._read_body(body, row, verify) if body else 0)

    def _members(self, number: int) -> dict[str, StoredMember]:
        """What the index says of the wanted members of a sample: by field, in tar order."""
        selection = self._selection
        shard = int(selection.shard[number])
        key, shard_name = selection.key(number), selection.shards[shard].name
        return {
            field: StoredMember(
                field=field,
                key=key,
                shard=shard,
                shard_name=shard_name,
                offset=int(selection.offsets[field][number]),
                size=int(selection.sizes[field][number]),
                xxh3_64=int(selection.hashes[field][number]),
                prefix=self._prefix[field],
            )
            for field in selection.members
        }

    def _read_small(self, run: Sequence[StoredMember], epoch: int, row: Row, verify: bool) -> int:
        """Read members that stand side by side at once; returns the bytes read."""
        landings = self._landings(run, row)
        targets = [
            (place.member, part) for place in landings for part in (place.head, place.data, place.padding)
        ]
        self._fill(targets, run[0].offset, verify)
        for place in landings:
            place.member.check_head(place.head)
            if verify:
                digest = xxhash.xxh3_64(place.member.prefix)
                digest.update(place.data)
                place.member.check_hash(digest.intdigest())
            if place.member.field == "texts":
                self._write_condition(place.member, place.data, epoch, row)
        return sum(len(part) for _, part in targets)

    def _landings(self, run: Sequence[StoredMember], row: Row) -> list[_Landing]:
        """Lay the members of a run out over the row's arrays and the scratch memory."""
        arrays: dict[str, NDArray[Any] | None] = {"scales": row.scales, "delta": row.delta}
        most = sum(member.size for member in run) + (2 * ustar.BLOCK + 64) * len(run)
        if len(self._scratch) < most:
            self._scratch = bytearray(most)
        scratch, used, landings = memoryview(self._scratch), 0, []

        def take(size: int) -> memoryview:
            nonlocal used
            used += size
            return scratch[used - size : used]

        for member in run:
            used = -(-used // 64) * 64  # arrays decoded in place want to be aligned
            array = arrays.get(member.field)
            head = take(ustar.BLOCK + len(member.prefix))
            data = take(member.size - len(member.prefix)) if array is None else _bytes(array)
            landings.append(_Landing(member, head, data, take(ustar.padded(member.size) - member.size)))
        return landings

    def _read_body(self, member: StoredMember, row: Row, verify: bool) -> int:
        """Read the body, block by block where its bytes are looked at again; returns the bytes read."""
        head = memoryview(bytearray(ustar.BLOCK + len(member.prefix)))
        self._fill([(member, head)], member.offset, verify)
        member.check_head(head)
        digest = xxhash.xxh3_64(member.prefix) if verify else None
        offset = member.offset + len(head)
        framer = self._framer(row)
        # Blocks are for bytes that are looked at again while they are in cache; else one read takes them all.
        again = digest is not None or row.body is None or (framer is not None and not framer.idle)
        num_tokens = self._selection.common.layout.num_tokens
        step = self._step if again else num_tokens
        for first in range(0, num_tokens, step):
            # Read to the final buffer, or to a block that stays in cache.
            block = self._block[: num_tokens - first] if row.body is None else row.body[first : first + step]
            self._fill([(member, block)], offset, verify)
            offset += block.nbytes
            if digest is not None:
                digest.update(_bytes(block))
            if framer is not None:
                framer.finish(first, block)
        if digest is not None:
            member.check_hash(digest.intdigest())
        return ustar.BLOCK + member.size

    def _framer(self, row: Row) -> HostFramer | None:
        """What finishes the body on the host; None when a device does it."""
        if self._plan is None or self._plan.on_device or row.scales is None:
            return None
        return HostFramer(self._plan, row.scales, row.tokens)

    def _write_condition(self, texts: StoredMember, data: memoryview, epoch: int, row: Row) -> None:
        if self._conditions is None or row.ids is None or row.mask is None:
            return
        try:
            self._conditions.write(data, epoch, texts.key, row.ids, row.mask)
        except HeaderError as error:
            raise texts.damage(error.what, error.expected, error.got) from error

    def _fill(self, targets: Sequence[tuple[StoredMember, Target]], offset: int, verify: bool) -> None:
        """Read parts of members of one sample that stand one after the other."""
        first, parts = targets[0][0], [part for _, part in targets]
        try:
            missing = self._files.read(first.shard, parts, offset, verify=verify)
        except DamageError as error:
            raise error.at(first.key, SUFFIX[first.field]) from error
        if not missing:
            return
        left = missing
        for member, part in reversed(targets):
            left -= memoryview(part).nbytes
            if left <= 0:
                raise member.damage("the shard is truncated", got=f"{missing} bytes too few")


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
