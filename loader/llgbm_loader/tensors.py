"""Dtypes of weights by name, their bits, and what may be given for a tensor of numbers."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import torch
from torch import Tensor

from llgbm_shards.arguments import shown
from llgbm_shards.errors import UsageError

#: The dtypes that weights may have, by the layout's name for them.
TORCH_DTYPE: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bits(tensor: Tensor) -> Tensor:
    """A view of a floating tensor as integers of the same width (numpy has no bfloat16)."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor with an element at each place: neither sparse nor nested."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested


def require_floats(name: str, value: Any) -> None:
    """Raises UsageError unless the value is a dense tensor of 16, 32 or 64 bit floats."""
    if not is_dense(value) or value.dtype not in FLOATS:
        expected = "a dense torch tensor of floats"
        raise UsageError("cannot be used", where=name, expected=expected, got=kind_of(value))


def require_values(name: str, value: Any) -> None:
    """Raises UsageError unless the value is such a tensor, on a device that keeps its numbers."""
    require_floats(name, value)
    if value.is_meta:
        raise UsageError("cannot be used", where=name, expected="a tensor with values", got=kind_of(value))


def kind_of(value: object) -> str:
    """What a value is, for messages: of a tensor its dtype, layout and device, for its numbers tell nothing."""
    if isinstance(value, Tensor):
        layout = "torch.nested" if value.is_nested else value.layout
        return f"a tensor of {value.dtype}, {layout}, on {value.device}"
    return shown(value) if value is None or isinstance(value, str | int | float) else type(value).__name__
