"""Reading one sample straight to where it is wanted: only wanted members, verified where they land."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.conditions import ConditionMaker
from llgbm_loader.files import ShardFiles
from llgbm_loader.hostframe import BLOCK_BYTES, HostFramer
from llgbm_loader.stored import StoredMember, side_by_side
from llgbm_loader.tokens import TokenPlan
from llgbm_loader.weights import HostGather, WeightPlan
from llgbm_shards import ustar
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.layout import BIT_DTYPE
from llgbm_shards.members import SUFFIX, pieces_header
from llgbm_shards.npy import npy_header
from llgbm_shards.storage import Target

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Where one sample goes. What is None is not wanted."""

    pieces: NDArray[Any] | None = None  # (N, r, chunk) bits: the stored bytes are read to it
    tokens: Tensor | None = (
        None  # on the host, made of the pieces while they are read; None: of ``pieces``, in place
    )
    weights: Tensor | None = None  # likewise; None: ``pieces`` are the weights
    ranks: NDArray[np.int64] | None = None  # (M,), with weights on the host
    scales: NDArray[np.float32] | None = None  # (N, 2)
    delta: NDArray[np.float32] | None = None  # (hidden,)
    ids: NDArray[np.int64] | None = None  # (L,) or (K, L)
    mask: NDArray[np.int64] | None = None  # likewise
    on_host: bool = True  # tokens are made on the host

    def clear(self) -> None:
        """Zeros everywhere: what an invalid row shows."""
        for array in (self.pieces, self.ranks, self.scales, self.delta, self.ids, self.mask):
            if array is not None:
                array.fill(0)
        for tensor in (self.tokens, self.weights):
            if tensor is not None:
                tensor.zero_()


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
        self,
        selection: Selection,
        tokens: TokenPlan | None,
        weights: WeightPlan | None,
        conditions: ConditionMaker | None,
    ) -> None:
        self._selection = selection
        self._tokens, self._weights = tokens, weights
        self._conditions = conditions
        self._files = ShardFiles(selection.shards)
        self._scratch = bytearray()
        self._rows: Tensor | None = None  # for the weights of a sample in the making
        layout, common = selection.common.layout, selection.common
        self._prefix = {
            "pieces": pieces_header(layout),
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
        pieces = members.pop("pieces", None)
        # Small members first: the scales are needed while the blocks of pieces pass through the cache.
        runs = side_by_side(members.values())
        nbytes = sum(self._read_small(run, epoch, row, verify) for run in runs)
        return nbytes + (self._read_pieces(pieces, row, verify) if pieces else 0)

    def _members(self, number: int) -> dict[str, StoredMember]:
        """What the index says of the wanted members of a sample: by field, in tar order."""
        selection = self._selection
        key = selection.key(number)
        return {
            field: StoredMember(
                field=field,
                key=key,
                shard=(shard := int(places.shard[number])),
                shard_name=selection.shards[shard].name,
                set_path=selection.shards[shard].set_path,
                offset=int(places.offset[number]),
                size=int(places.size[number]),
                xxh3_64=int(places.xxh3_64[number]),
                prefix=self._prefix[field],
            )
            for field, places in selection.places.items()
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

    def _read_pieces(self, member: StoredMember, row: Row, verify: bool) -> int:
        """Read the pieces, block by block where their bytes are looked at again; returns the bytes read."""
        head = memoryview(bytearray(ustar.BLOCK + len(member.prefix)))
        self._fill([(member, head)], member.offset, verify)
        member.check_head(head)
        digest = xxhash.xxh3_64(member.prefix) if verify else None
        offset = member.offset + len(head)
        gather, framer = self._gather(row), self._framer(row)
        # Blocks are for bytes that are looked at again while they are in cache; else one read takes them all.
        again = digest is not None or row.pieces is None or framer is not None
        num_tokens = self._selection.common.layout.num_tokens
        step = self._step if again else num_tokens
        for first in range(0, num_tokens, step):
            # Read to the final buffer, or to a block that stays in cache.
            block = (
                self._block[: num_tokens - first] if row.pieces is None else row.pieces[first : first + step]
            )
            self._fill([(member, block)], offset, verify)
            offset += block.nbytes
            if digest is not None:
                digest.update(_bytes(block))
            if gather is not None:
                gather.take(first, block)
            if framer is not None:
                framer.finish(first, self._to_overwrite(block, row))
        if digest is not None:
            member.check_hash(digest.intdigest())
        if gather is not None:
            gather.finish()
        return ustar.BLOCK + member.size

    def _to_overwrite(self, block: NDArray[Any], row: Row) -> NDArray[Any]:
        """The block to make tokens of: a copy where the pieces themselves are wanted as weights."""
        if row.pieces is None or row.tokens is None:
            return block
        copy = self._block[: len(block)]
        np.copyto(copy, block.view(copy.dtype))
        return copy

    def _gather(self, row: Row) -> HostGather | None:
        """What makes weights on the host; None when a device does it, or nobody wants them."""
        if self._weights is None or row.ranks is None:
            return None
        if self._rows is None:
            self._rows = self._weights.scratch()
        return HostGather(self._weights, row.weights, row.ranks, self._rows)

    def _framer(self, row: Row) -> HostFramer | None:
        """What makes tokens on the host; None when a device does it, or nobody wants them."""
        if self._tokens is None or row.scales is None or not row.on_host:
            return None
        return HostFramer(self._tokens, row.scales, row.tokens)

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
