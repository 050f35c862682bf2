"""From the shapes of an adapter's modules to the table of tokens they become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import TOKEN_ORDERS, Layout, Module
from llgbm_shards.ustar import MAX_MEMBER_BYTES

#: Most rows or columns of a piece: an index keeps the rank in 32 bits.
MOST_SIZE: Final = 2**31 - 1
#: Order of a layer's modules in Drag-and-Drop-LLMs, by the last component of the name.
DND_ORDER: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")


def layer_number(name: str) -> int:
    """Layer of a module: the first component of its name that is all digits, -1 when there is none."""
    for part in name.split("."):
        if part.isascii() and part.isdigit():
            return int(part)
    return -1


def sort_modules(names: Mapping[str, object] | list[str], token_order: str) -> list[str]:
    """Brings canonical module names into token order.

    ``sorted``: plain ``sorted()`` of the lora_A keys (layers 0, 1, 10, 11, ..., 2). ``dnd``: by layer number
    (names without one last), inside a layer q, k, v, o, up, gate, down, then modules of other names, sorted.
    """
    if token_order not in TOKEN_ORDERS:
        raise UsageError("unknown token order", expected=" or ".join(TOKEN_ORDERS), got=repr(token_order))
    # The suffix takes part in the comparison, as it does when the keys of a file are sorted.
    by_key = sorted(names, key=lambda name: f"{name}.lora_A.weight")
    return by_key if token_order == "sorted" else sorted(by_key, key=_dnd_key)


def make_layout(
    shapes: Mapping[str, tuple[int, int, int]],
    *,
    dtype: str,
    token_order: str = "sorted",
    chunk: int | None = None,
    rank: int | None = None,
) -> Layout:
    """Builds the layout of adapters with these modules.

    Args:
        shapes: Canonical module name to (rank, in_features, out_features).
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        token_order: ``sorted`` or ``dnd``, see :func:`sort_modules`.
        chunk: Columns of a piece; the greatest common divisor of all widths by default.
        rank: Rows of a piece; the largest rank of the modules by default.

    Returns:
        The layout, its modules in token order.

    Raises:
        CheckpointError: There are no modules, or one has an empty side or more rows than ``rank``.
        UsageError: ``chunk``, ``rank`` or ``token_order`` cannot be used, or a body would be too large.
    """
    _check(shapes, chunk, rank)
    chunk = chunk or math.gcd(*(width for _, *widths in shapes.values() for width in widths))
    modules: list[Module] = []
    token = 0
    for name in sort_modules(list(shapes), token_order):
        _, width_a, width_b = shapes[name]
        modules.append(
            Module(
                name=name,
                layer=layer_number(name),
                in_features=width_a,
                out_features=width_b,
                first_token=token,
                tokens_a=-(-width_a // chunk),
                tokens_b=-(-width_b // chunk),
            )
        )
        token += modules[-1].tokens_a + modules[-1].tokens_b
    rank = rank or max(shape[0] for shape in shapes.values())
    layout = Layout(dtype=dtype, rank=rank, chunk=chunk, token_order=token_order, modules=tuple(modules))
    if layout.pieces_bytes > MAX_MEMBER_BYTES:
        expected, got = f"at most {MAX_MEMBER_BYTES} bytes", f"{layout.pieces_bytes}"
        do = "Take a smaller rank or chunk."
        raise UsageError("a body too large for a tar", where="rank, chunk", expected=expected, got=got, do=do)
    return layout


def _check(shapes: Mapping[str, tuple[int, int, int]], chunk: int | None, rank: int | None) -> None:
    for option, value in (("chunk", chunk), ("rank", rank)):
        if value is not None and value < 1:
            raise UsageError("must be positive", where=option, got=str(value))
    if not shapes:
        raise CheckpointError("no LoRA modules", expected="lora_A and lora_B matrices")
    for name, shape in shapes.items():
        if min(shape) < 1:
            raise CheckpointError(
                "empty module", where=name, expected="rank, in, out of 1 or more", got=f"{shape}"
            )
        if rank is not None and shape[0] > rank:
            raise CheckpointError(
                "rank is too large", where=name, expected=f"at most {rank}", got=f"{shape[0]}"
            )


def _dnd_key(name: str) -> tuple[float, int]:
    last = name.rsplit(".", 1)[-1]
    layer = layer_number(name)
    place = DND_ORDER.index(last) if last in DND_ORDER else len(DND_ORDER)
    return (layer if layer >= 0 else math.inf, place)
