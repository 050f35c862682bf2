"""How ``default_collate`` joins the weights of samples: as views of one tensor.

A DataLoader's worker sends each storage by a file descriptor of its own. Joined one by one, the hundreds of matrices of
a batch would be more than a process may have; its sending thread then fails, and the DataLoader waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map


class ByName(dict[str, Any]):
    """Weights or ranks of one sample by name: a tensor or a pair (A, B) each, all of one dtype."""


def join_samples(samples: Sequence[ByName], **_: Any) -> dict[str, Any]:
    """The same of a batch, with one more dimension in front. ``default_collate`` calls it for what is ``ByName``."""
    first = samples[0]
    leaves = [leaf for value in first.values() for leaf in _leaves(value)]
    flat = torch.empty(len(samples) * sum(leaf.numel() for leaf in leaves), dtype=leaves[0].dtype)
    parts = iter(torch.split(flat, [len(samples) * leaf.numel() for leaf in leaves]))

    def stack(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors), out=next(parts).view(len(tensors), *tensors[0].shape))

    return {
        name: tuple(map(stack, zip(*(sample[name] for sample in samples), strict=True)))
        if isinstance(value, tuple)
        else stack([sample[name] for sample in samples])
        for name, value in first.items()
    }


def _leaves(value: Any) -> Iterable[Tensor]:
    return value if isinstance(value, tuple) else (value,)


default_collate_fn_map[ByName] = join_samples
