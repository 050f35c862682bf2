"""LoraTokenizer2D: the tokenizer of one adapter in memory, with the interface users know from DnD's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from llgbm_loader.frame import FRAMES, ZERO_STDS, unframe
from llgbm_loader.hostframe import BLOCK_BYTES, HostFramer
from llgbm_loader.tensors import TORCH_DTYPE, bits, is_dense, kind_of, require_values
from llgbm_loader.tokens import TokenPlan
from llgbm_pack.sources.peft_keys import pair_keys, peft_key
from llgbm_pack.tokenize.decode import decode_body
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.tokenize.module_table import MOST_SIZE, make_layout
from llgbm_shards.arguments import is_one_of, shown, whole_number
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import BIT_DTYPE, PADDING_BITS, TOKEN_ORDERS, Layout

#: Where keys stand, for messages: a build names the file here.
_WHERE: Final = "weights"


class LoraTokenizer2D:
    """Cuts LoRA weights into 2-D tokens, and back.

    Args:
        order: Order of the modules, ``sorted`` or ``dnd``.
        frame: ``dnd``, ``fp32`` or ``none``, see ``llgbm_loader.frame.frame_tokens``.
        zero_std: How a piece of zero std is shown, ``nan`` or ``zeros``.
        chunk: Columns of a piece; by default the greatest common divisor of the weights' widths.
        rank: Rows of a piece; by default the largest rank of the weights.

    Raises:
        UsageError: An option has a value it cannot have.
    """

    def __init__(
        self,
        order: str = "sorted",
        frame: str = "dnd",
        zero_std: str = "nan",
        chunk: int | None = None,
        rank: int | None = None,
    ) -> None:
        for option, value, known in (
            ("order", order, TOKEN_ORDERS),
            ("frame", frame, FRAMES),
            ("zero_std", zero_std, ZERO_STDS),
        ):
            if not is_one_of(value, known):
                raise UsageError("unknown value", where=option, expected=" or ".join(known), got=shown(value))
        self.order = order
        self.frame = frame
        self.zero_std = zero_std
        self.chunk = None if chunk is None else whole_number("chunk", chunk, 1, MOST_SIZE)
        self.rank = None if rank is None else whole_number("rank", rank, 1, MOST_SIZE)

    def layout(self, weights: Mapping[str, Tensor]) -> Layout:
        """The layout of these weights' tokens.

        Args:
            weights: PEFT keys to tensors.

        Raises:
            CheckpointError: A key or tensor cannot be tokenized; it is named.
            UsageError: Not a mapping of keys to tensors; ``chunk`` or ``rank`` cannot be used.
        """
        return self._layout(_pairs(weights))

    def tokenize(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Tokenizes the weights of one adapter.

        Args:
            weights: PEFT keys (``...lora_A.weight`` or ``...lora_A.default.weight``), as a build reads them, to
                tensors of one dtype: bfloat16, float16 or float32.

        Returns:
            tokens (N, H, W) float32 and scales (N, 2) float32, on the CPU.

        Raises:
            CheckpointError: A key or tensor cannot be tokenized; it is named.
            UsageError: Not a mapping of keys to tensors; ``chunk`` or ``rank`` cannot be used.
        """
        pairs = _pairs(weights)
        layout = self._layout(pairs)
        pieces, scales = cut_pairs(pairs, layout)
        return frame_pieces(pieces, scales, layout, frame=self.frame, zero_std=self.zero_std), scales

    def detokenize(
        self, tokens: Tensor, scales: Tensor | None = None, *, like: Mapping[str, Tensor] | Layout
    ) -> dict[str, Tensor]:
        """Restores weights from tokens.

        Args:
            tokens: (N, H, W), as :meth:`tokenize` or a generator gives them.
            scales: (N, 2) mean and std; decoded from the frame when not given.
            like: Weights with the keys, shapes and dtype to restore, or a layout (then PEFT's keys, modules told
                from the padding).

        Returns:
            Keys to tensors.

        Raises:
            UsageError: Tokens, scales and ``like`` do not fit each other, or are of another kind.
            CheckpointError: ``like`` has weights that cannot be tokenized.
        """
        require_values("tokens", tokens)
        if scales is not None:
            require_values("scales", scales)
        keys: dict[tuple[str, str], str] = {}
        if isinstance(like, Layout):
            layout, ranks = like, None
        else:
            pairs = _pairs(like)
            layout, ranks = self._layout(pairs), {name: pair[0].shape[0] for name, pair in pairs.items()}
            for name, named in pair_keys(like, _WHERE).items():
                keys |= {(name, "A"): named.a, (name, "B"): named.b}
        body, used = self._body_of(tokens.detach().cpu(), scales, layout)
        restored: dict[str, Tensor] = {}
        for name, pair in decode_body(body, used, layout, ranks=ranks).items():
            for side, tensor in zip("AB", pair, strict=True):
                restored[keys.get((name, side), peft_key(name, side))] = tensor
        return restored if isinstance(like, Layout) else {key: restored[key] for key in like}

    def _body_of(self, tokens: Tensor, scales: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
        shape = layout.pieces_shape if self.frame == "none" else layout.tokens_shape
        if tuple(tokens.shape) != shape:
            got = f"{tuple(tokens.shape)}"
            raise UsageError("tokens do not fit the weights", where="tokens", expected=f"{shape}", got=got)
        if scales is not None:
            return tokens[:, : layout.rank, : layout.chunk], scales.detach().cpu()
        if self.frame == "none":
            raise UsageError("tokens without a frame need scales", where="scales", got="None")
        return unframe(tokens)

    def _layout(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Layout:
        shapes = {name: (low.shape[0], low.shape[1], high.shape[0]) for name, (low, high) in pairs.items()}
        dtype = next((str(low.dtype).removeprefix("torch.") for low, _ in pairs.values()), "float32")
        if dtype not in PADDING_BITS:
            expected = " or ".join(PADDING_BITS)
            raise CheckpointError("dtype cannot be tokenized", where=_WHERE, expected=expected, got=dtype)
        return make_layout(shapes, dtype=dtype, token_order=self.order, chunk=self.chunk, rank=self.rank)


def cut_pairs(pairs: Mapping[str, tuple[Tensor, Tensor]], layout: Layout) -> tuple[Tensor, Tensor]:
    """Pieces (N, r, chunk) and scales (N, 2) of matrices by canonical module name; modules they lack are padding."""
    pieces = torch.empty(layout.pieces_shape, dtype=TORCH_DTYPE[layout.dtype])
    scales = torch.empty(layout.num_tokens, 2)
    PieceEncoder(layout).encode(pairs, pieces, scales)
    return pieces, scales


def frame_pieces(pieces: Tensor, scales: Tensor, layout: Layout, *, frame: str, zero_std: str) -> Tensor:
    """Tokens (N, H, W) float32 of pieces, which are overwritten with their body, and scales."""
    plan = TokenPlan(layout, frame, zero_std, torch.float32)
    tokens = torch.empty(plan.shape, dtype=torch.float32)
    framer = HostFramer(plan, scales.numpy(), tokens)
    stored = bits(pieces).numpy().view(BIT_DTYPE[layout.dtype])
    step = max(1, BLOCK_BYTES // max(1, stored[0].nbytes))
    for first in range(0, layout.num_tokens, step):
        framer.finish(first, stored[first : first + step])
    return tokens


def _pairs(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    _refuse_no_weights(weights)
    keys = pair_keys(weights, _WHERE)
    return {name: (_matrix(weights, pair.a), _matrix(weights, pair.b)) for name, pair in keys.items()}


def _refuse_no_weights(weights: object) -> None:
    expected = "a mapping of PEFT keys to torch tensors"
    if not isinstance(weights, Mapping):
        raise UsageError("cannot be used", where=_WHERE, expected=expected, got=kind_of(weights))
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            got = f"{shown(key)}: {kind_of(tensor)}"
            raise UsageError("cannot be used", where=_WHERE, expected=expected, got=got)


def _matrix(weights: Mapping[str, Tensor], key: str) -> Tensor:
    tensor = weights[key]
    if not is_dense(tensor) or tensor.is_meta:
        expected, got = "a dense tensor with values", kind_of(tensor)
        raise CheckpointError("no values to cut", where=f"{_WHERE}: {key}", expected=expected, got=got)
    if tensor.ndim != 2:
        raise CheckpointError(
            "not a matrix", where=f"{_WHERE}: {key}", expected="2 dimensions", got=f"{tuple(tensor.shape)}"
        )
    return tensor.detach().cpu()
