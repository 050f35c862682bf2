"""The forms in which a trainer gets the weights of a sample: pieces, modules, layers, flat.

A stored row is one row of a piece: ``chunk`` values of one rank. Ordering rows alone makes of pieces a stack of the
matrices of one kind, A as (r, in) and B transposed as (r, out), its layers in numeric order; the rest is views. So all
matrices of a sample take one gather of rows, on the host while the pieces pass through the cache, on a device at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm_shards.layout import Layout, Module

VIEWS: Final = ("pieces", "modules", "layers", "flat")
_NUMBER: Final = re.compile(r"(?<![^.])[0-9]+(?![^.])")


@dataclass(frozen=True, slots=True)
class Stack:
    """Modules of one kind: their names differ in the layer's number alone, and their shapes not at all."""

    kind: str  # the shortest end of the names that no other kind has
    modules: tuple[int, ...]  # positions in the module table, by layer number
    in_features: int
    out_features: int


def stacks_of(layout: Layout) -> tuple[Stack, ...]:
    """The kinds of modules of a layout, in the order of the module table sorted by layer number.

    Modules of one name pattern but of different shapes are different kinds; then each carries its shape.
    """
    groups: dict[tuple[str, int, int], list[int]] = {}
    for position in _by_layer(layout):
        module = layout.modules[position]
        pattern = _NUMBER.sub("*", module.name, count=1)
        groups.setdefault((pattern, module.in_features, module.out_features), []).append(position)
    names = _shortest([pattern for pattern, _, _ in groups])
    shapes = [pattern for pattern, _, _ in groups]
    return tuple(
        Stack(
            names[pattern] if shapes.count(pattern) == 1 else f"{names[pattern]}[{width_in},{width_out}]",
            tuple(positions),
            width_in,
            width_out,
        )
        for (pattern, width_in, width_out), positions in groups.items()
    )


def _by_layer(layout: Layout) -> list[int]:
    """Positions in the module table, by layer number; modules without one come last."""
    layers = [module.layer if module.layer >= 0 else math.inf for module in layout.modules]
    return sorted(range(len(layers)), key=lambda at: (layers[at], at))


def _shortest(patterns: list[str]) -> dict[str, str]:
    """For each pattern its shortest end of whole components that ends no other pattern."""
    ends: dict[str, str] = {}
    for pattern in patterns:
        parts = pattern.split(".")
        others = [f".{other}" for other in patterns if other != pattern]
        candidates = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        ends[pattern] = next(
            (end for end in candidates if not any(other.endswith(f".{end}") for other in others)), pattern
        )
    return ends


class WeightView:
    """From stored pieces to the weights of a batch in one of the views.

    Args:
        layout: The layout of the set.
        view: ``pieces``, ``modules``, ``layers`` or ``flat``.
    """

    def __init__(self, layout: Layout, view: str) -> None:
        self.layout, self.view = layout, view
        self.stacks = stacks_of(layout)
        #: (M,) first token of each module, in table order.
        self.first_tokens = np.array([module.first_token for module in layout.modules], np.int64)
        #: (N r,) gathered row -> stored row, and the other way round; None for pieces, whose order stays.
        self.order: NDArray[np.int64] | None = None if view == "pieces" else self._order()
        self.place: NDArray[np.int64] | None = None if self.order is None else np.argsort(self.order)
        #: (M,) positions in the module table, kind by kind.
        self._by_kind = np.array([at for stack in self.stacks for at in stack.modules], np.int64)
        #: Position and name of each module, by layer number.
        self._names = [(at, layout.modules[at].name) for at in _by_layer(layout)]
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._flat = list(self._flat_places()) if view == "flat" else []

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's weights in a batch's memory."""
        layout = self.layout
        if self.view == "flat":
            width = sum(module.in_features + module.out_features for module in layout.modules)
            return (layout.rank * width,)
        if self.view == "pieces":
            return layout.pieces_shape
        return (layout.num_tokens * layout.rank, layout.chunk)

    def gather(self, pieces: Tensor) -> Tensor:
        """Weights (B, *shape) of pieces (B, N, r, chunk), padding rows zeroed; ``pieces`` themselves for that view."""
        if self.order is None:
            return pieces
        order, _, _ = self._on(pieces.device)
        stored = pieces.flatten(1, 2)
        rows = stored.index_select(1, order)
        # The first value of a row is padding in rows that are nothing else.
        rows.masked_fill_(stored[..., 0].isnan()[:, order, None], 0)
        return self.flatten(rows) if self.view == "flat" else rows

    def ranks(self, pieces: Tensor) -> Tensor:
        """(B, M) int64, the rank of each module of the table, 0 where it is absent, of pieces (B, N, r, chunk)."""
        _, first, _ = self._on(pieces.device)
        return (~pieces[..., 0].index_select(1, first).isnan()).sum(-1)

    def present(self, weights: Tensor, ranks: Tensor) -> dict[str, Any]:
        """The fields ``weights`` and ``ranks`` of a batch, views of these tensors.

        Args:
            weights: (B, *shape), or (*shape) of one sample.
            ranks: (B, M), or (M,).
        """
        if self.view == "layers":
            # One gather with an index that is there already: to send one, the host would wait for all that a device does.
            by_kind = ranks.index_select(-1, self._on(ranks.device)[2])
            each = torch.split(by_kind, [len(stack.modules) for stack in self.stacks], -1)
            return {
                "weights": {stack.kind: pair for stack, pair in self._stacked(weights)},
                "ranks": dict(zip((stack.kind for stack in self.stacks), each, strict=True)),
            }
        if self.view != "modules":
            return {"weights": weights, "ranks": ranks}
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for stack, (a, b) in self._stacked(weights):
            pairs |= zip(stack.modules, zip(a.unbind(-3), b.unbind(-3), strict=True), strict=True)
        each = ranks.unbind(-1)
        return {
            "weights": {name: pairs[at] for at, name in self._names},
            "ranks": {name: each[at] for at, name in self._names},
        }

    def flatten(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, P) of gathered rows (B, N r, chunk): by layer number, each module's A row by row, then its B."""
        flat = rows.new_empty((len(rows), *self.shape)) if out is None else out
        pairs = dict(self._stacked(rows))
        for stack, members, start, step in self._flat:
            for side, tensor in enumerate(pairs[stack]):
                chosen = tensor[:, members]
                size = chosen[0, 0].numel()
                at = start + side * self.layout.rank * stack.in_features
                place = flat.as_strided(
                    (len(flat), chosen.shape[1], size), (flat.stride(0), step, 1), flat.storage_offset() + at
                )
                place.view(chosen.shape).copy_(chosen)
        return flat

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The order of rows, the first tokens, and the modules by kind on a device, sent there once."""
        if device not in self._there:
            order = np.zeros(0, np.int64) if self.order is None else self.order
            order_there, first, by_kind = (
                torch.from_numpy(array).to(device) for array in (order, self.first_tokens, self._by_kind)
            )
            self._there[device] = order_there, first, by_kind
        return self._there[device]

    def _order(self) -> NDArray[np.int64]:
        rank = self.layout.rank
        parts = []
        for stack in self.stacks:
            modules = [self.layout.modules[at] for at in stack.modules]
            for first, count in _sides(modules):
                token = first[:, None, None] + np.arange(count)
                parts.append((token * rank + np.arange(rank)[:, None]).reshape(-1))
        return np.concatenate(parts)

    def _stacked(self, rows: Tensor) -> Iterator[tuple[Stack, tuple[Tensor, Tensor]]]:
        """Each kind with A (..., L, r, in) and B (..., L, out, r), views of gathered rows."""
        rank, start = self.layout.rank, 0
        for stack in self.stacks:
            sides, one = [], self.layout.modules[stack.modules[0]]
            for count in (one.tokens_a, one.tokens_b):
                end = start + len(stack.modules) * rank * count
                part = rows[..., start:end, :]
                sides.append(part.view(*part.shape[:-2], len(stack.modules), rank, -1))
                start = end
            a, b = sides
            yield stack, (a[..., : stack.in_features], b[..., : stack.out_features].transpose(-1, -2))

    def _flat_places(self) -> Iterator[tuple[Stack, slice, int, int]]:
        """(kind, some of its modules, place of the first, step from each to the next): one copy each."""
        place, places = 0, dict[int, int]()
        for at in _by_layer(self.layout):
            places[at] = place
            module = self.layout.modules[at]
            place += self.layout.rank * (module.in_features + module.out_features)
        for stack in self.stacks:
            starts = [places[at] for at in stack.modules]
            first = 0
            while first < len(starts):
                step = starts[first + 1] - starts[first] if first + 1 < len(starts) else 1
                end = first + 1
                while end < len(starts) and starts[end] - starts[end - 1] == step:
                    end += 1
                yield stack, slice(first, end), starts[first], step
                first = end


def _sides(modules: list[Module]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """First tokens of the modules' A and the count of each, then the same of B; all are of one kind."""
    first = np.array([module.first_token for module in modules], np.int64)
    yield first, modules[0].tokens_a
    yield first + modules[0].tokens_a, modules[0].tokens_b
