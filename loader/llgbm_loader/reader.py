"""Reading one sample straight to where it is wanted: only wanted members, verified where they land."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from llgbm_loader.conditions import ConditionMaker
from llgbm_loader.files import ShardFiles
from llgbm_loader.hostframe import BLOCK_BYTES, HostFramer
from llgbm_loader.tokens import TokenPlan
from llgbm_shards import ustar
from llgbm_shards.errors import MEND, DamageError, HeaderError
from llgbm_shards.layout import BIT_DTYPE
from llgbm_shards.members import SUFFIX, pieces_header
from llgbm_shards.npy import npy_header
from llgbm_shards.storage import Target

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Where one sample goes. What is None is not wanted.

    Attributes:
        body: (N, r, chunk) bits, filled with the stored bytes.
        tokens: Tokens on the host, made of the body while it is read.
        scales: (N, 2) float32.
        delta: (hidden,) float32.
        ids: (L,) or (K, L) int64.
        mask: Likewise.
    """

    body: NDArray[Any] | None = None
    tokens: Tensor | None = None
    scales: NDArray[np.float32] | None = None
    delta: NDArray[np.float32] | None = None
    ids: NDArray[np.int64] | None = None
    mask: NDArray[np.int64] | None = None

    def clear(self) -> None:
        """Zeros everywhere: what an invalid row shows."""
        for array in (self.body, self.scales, self.delta, self.ids, self.mask):
            if array is not None:
                array.fill(0)
        if self.tokens is not None:
            self.tokens.zero_()


@dataclass(frozen=True, slots=True)
class _Piece:
    """One member on its way: header bytes to compare, and where its data goes."""

    field: str
    head: memoryview
    expected_head: bytes
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
        key = self._selection.key(number)
        # Small members first: their scales are needed while the body's blocks pass through the cache.
        total = 0
        for run in self._runs(number):
            total += self._read_small(number, key, run, epoch, row, verify)
        if "body" in self._selection.members:
            total += self._read_body(number, key, row, verify)
        return total

    def _runs(self, number: int) -> Iterable[list[str]]:
        """Wanted members but the body, grouped where they stand side by side in the tar."""
        selection, run, end = self._selection, list[str](), -1
        for field in selection.members:
            if field == "pieces":
                continue
            start = int(selection.offsets[field][number])
            if run and start != end:
                yield run
                run = []
            run.append(field)
            end = start + ustar.BLOCK + ustar.padded(int(selection.sizes[field][number]))
        if run:
            yield run

    def _read_small(
        self, number: int, key: str, run: Sequence[str], epoch: int, row: Row, verify: bool
    ) -> int:
        selection = self._selection
        pieces = self._pieces(number, key, run, row)
        targets = [
            (piece.field, part) for piece in pieces for part in (piece.head, piece.data, piece.padding)
        ]
        self._fill(number, key, targets, int(selection.offsets[run[0]][number]), verify)
        for piece in pieces:
            self._check_head(number, key, piece.field, piece.head, piece.expected_head)
            if verify:
                digest = xxhash.xxh3_64(piece.head[ustar.BLOCK :])
                digest.update(piece.data)
                self._compare_hash(number, key, piece.field, digest.intdigest())
            if piece.field == "texts":
                self._write_condition(number, key, piece.data, epoch, row)
        return sum(len(part) for _, part in targets)

    def _pieces(self, number: int, key: str, run: Sequence[str], row: Row) -> list[_Piece]:
        """Lay the members of a run out over the row's arrays and the scratch memory."""
        sizes = {field: int(self._selection.sizes[field][number]) for field in run}
        landing: dict[str, NDArray[Any] | None] = {"scales": row.scales, "delta": row.delta}
        scratch = self._scratch_view(sum(sizes.values()) + 2 * ustar.BLOCK * len(run) + 64 * len(run))
        pieces, used = [], 0

        def take(size: int) -> memoryview:
            nonlocal used
            used += size
            return scratch[used - size : used]

        for field, size in sizes.items():
            prefix = self._prefix[field]
            used = -(-used // 64) * 64  # arrays decoded in place want to be aligned
            target = landing.get(field)
            head = take(ustar.BLOCK + len(prefix))
            data = take(size - len(prefix)) if target is None else target.reshape(-1).view(np.uint8).data
            expected = ustar.header(f"{key}.{SUFFIX[field]}", size) + prefix
            pieces.append(_Piece(field, head, expected, data, take(ustar.padded(size) - size)))
        return pieces

    def _read_body(self, number: int, key: str, row: Row, verify: bool) -> int:
        selection, prefix = self._selection, self._prefix["pieces"]
        size = int(selection.sizes["pieces"][number])
        offset = int(selection.offsets["pieces"][number])
        head = memoryview(bytearray(ustar.BLOCK + len(prefix)))
        self._fill(number, key, [("body", head)], offset, verify)
        self._check_head(number, key, "body", head, ustar.header(f"{key}.{SUFFIX['body']}", size) + prefix)
        digest = xxhash.xxh3_64(prefix) if verify else None
        offset += len(head)
        framer = self._framer(row)
        # Blocks are for bytes that are looked at again while they are in cache; else one read takes them all.
        again = digest is not None or row.body is None or (framer is not None and not framer.idle)
        step = self._step if again else selection.common.layout.num_tokens
        for first in range(0, selection.common.layout.num_tokens, step):
            block = self._target(row, first, step)
            self._fill(number, key, [("body", block)], offset, verify)
            offset += block.nbytes
            if digest is not None:
                digest.update(block.reshape(-1).view(np.uint8).data)
            if framer is not None:
                framer.finish(first, block)
        if digest is not None:
            self._compare_hash(number, key, "body", digest.intdigest())
        return ustar.BLOCK + size

    def _target(self, row: Row, first: int, step: int) -> NDArray[Any]:
        """Where the pieces from ``first`` on are read to: the final buffer, or a block that stays in cache."""
        if row.body is not None:
            return row.body[first : first + step]
        return self._block[: min(step, self._selection.common.layout.num_tokens - first)]

    def _framer(self, row: Row) -> HostFramer | None:
        """What finishes the body on the host; None when a device does it."""
        if self._plan is None or self._plan.on_device or row.scales is None:
            return None
        return HostFramer(self._plan, row.scales, row.tokens)

    def _write_condition(self, number: int, key: str, data: memoryview, epoch: int, row: Row) -> None:
        conditions = self._conditions
        if conditions is None or row.ids is None or row.mask is None:
            return
        try:
            conditions.write(data, epoch, key, row.ids, row.mask)
        except HeaderError as error:
            raise self._damage(number, key, "texts", error.what, error.expected, error.got) from error

    def _fill(
        self, number: int, key: str, targets: Sequence[tuple[str, Target]], offset: int, verify: bool
    ) -> None:
        """Read parts of members, named by field, that stand one after the other."""
        try:
            parts = [part for _, part in targets]
            missing = self._files.read(int(self._selection.shard[number]), parts, offset, verify=verify)
        except DamageError as error:
            raise error.at(key, SUFFIX[targets[0][0]]) from error
        if missing:
            left = missing
            for field, part in reversed(targets):
                left -= memoryview(part).nbytes
                if left <= 0:
                    raise self._damage(
                        number, key, field, "the shard is truncated", got=f"{missing} bytes too few"
                    )

    def _check_head(self, number: int, key: str, field: str, head: memoryview, expected: bytes) -> None:
        """The tar header and the array header are functions of the index row: so a foreign shard shows."""
        if head != expected:
            raise self._damage(number, key, field, "not the member that the index names")

    def _compare_hash(self, number: int, key: str, field: str, got: int) -> None:
        want = int(self._selection.hashes[field][number])
        if got != want:
            raise self._damage(
                number, key, field, "the bytes are not those that were written", f"{want:016x}", f"{got:016x}"
            )

    def _damage(
        self, number: int, key: str, field: str, what: str, expected: str = "", got: str = ""
    ) -> DamageError:
        return DamageError(
            what,
            shard=self._selection.shards[int(self._selection.shard[number])].name,
            key=key,
            member=SUFFIX[field],
            expected=expected,
            got=got,
            do=MEND,
        )

    def _scratch_view(self, size: int) -> memoryview:
        if len(self._scratch) < size:
            self._scratch = bytearray(size)
        return memoryview(self._scratch)[:size]
