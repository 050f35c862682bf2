"""One torch thread while a checkpoint is packed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread; on as many as before afterwards, for the process may be a user's own.

    Packing is bound by memory, and OpenMP threads that wait for one another by spinning take ten times as long
    where other programs use the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
