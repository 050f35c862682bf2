"""The layout of a set: one dtype, rank, chunk and module table that all its samples share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from llgbm_shards.arguments import is_one_of, shown
from llgbm_shards.errors import HeaderError

#: Bit pattern of padding (one quiet NaN per dtype), as the unsigned integer of the same width.
PADDING_BITS: Final = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000}
#: numpy has no bfloat16: values are handled as bits here; these are numpy dtype strings.
BIT_DTYPE: Final = {"bfloat16": "<u2", "float16": "<u2", "float32": "<u4"}
_ITEMSIZE: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
#: The dtype's name in a safetensors header.
SAFETENSORS_DTYPE: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
TOKEN_ORDERS: Final = ("sorted", "dnd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One adapted linear layer and the tokens it becomes.

    Attributes:
        name: Canonical module name, e.g. ``model.layers.0.self_attn.q_proj``.
        layer: Layer number, -1 when the name has none.
        in_features: Width of lora_A (r, in).
        out_features: Height of lora_B (out, r).
        first_token: Number of the module's first token.
        tokens_a: Count of pieces of A; they come first.
        tokens_b: Count of pieces of B transposed.
    """

    name: str
    layer: int
    in_features: int
    out_features: int
    first_token: int
    tokens_a: int
    tokens_b: int

    def to_json(self) -> dict[str, Any]:
        """The module's row in ``shardset.json``."""
        return {name.removesuffix("_features"): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Module:
        """Inverse of :meth:`to_json`."""
        return cls(**{one.name: row[one.name.removesuffix("_features")] for one in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the pieces of every sample of a set look like.

    Attributes:
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        rank: Rows of a piece (r).
        chunk: Columns of a piece.
        token_order: ``sorted`` or ``dnd``.
        modules: The module table, in token order.
    """

    dtype: str
    rank: int
    chunk: int
    token_order: str
    modules: tuple[Module, ...]

    def __post_init__(self) -> None:
        for what, value, known in (
            ("dtype", self.dtype, tuple(PADDING_BITS)),
            ("token order", self.token_order, TOKEN_ORDERS),
        ):
            if not is_one_of(value, known):
                expected = "/".join(known)
                raise HeaderError(f"unknown {what}", where="layout", expected=expected, got=shown(value))
        for what, size in (("rank", self.rank), ("chunk", self.chunk)):
            if type(size) is not int or size < 1:
                raise HeaderError(f"no such {what}", where="layout", expected="1 or more", got=shown(size))
        token = 0
        for module in self.modules:
            want = (token, -(-module.in_features // self.chunk), -(-module.out_features // self.chunk))
            got = (module.first_token, module.tokens_a, module.tokens_b)
            if got != want:
                what, place = "module table does not add up", f"{module.name:.200}"
                raise HeaderError(what, where=place, expected=f"{want}", got=f"{got}")
            token += module.tokens_a + module.tokens_b

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of a sample."""
        if not self.modules:
            return 0
        last = self.modules[-1]
        return last.first_token + last.tokens_a + last.tokens_b

    @property
    def pieces_shape(self) -> tuple[int, int, int]:
        """(N, r, chunk)."""
        return (self.num_tokens, self.rank, self.chunk)

    @property
    def tokens_shape(self) -> tuple[int, int, int]:
        """(N, H, W) = (N, r+2, chunk+2), the body in DnD's frame."""
        return (self.num_tokens, self.rank + 2, self.chunk + 2)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return _ITEMSIZE[self.dtype]

    @property
    def pieces_bytes(self) -> int:
        """Bytes of one sample's pieces."""
        return self.num_tokens * self.rank * self.chunk * self.itemsize
