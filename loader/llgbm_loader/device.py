"""Batches to an accelerator: copied and finished on a side stream, so that the consumer's stream never waits long.

Readers fill page-locked buffers; the copy, the cast and the frame run on the side stream; the consumer's stream
waits for their event, the host for nothing. A host buffer is let go of when the event of its copy has passed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from llgbm_shards.arguments import as_index, shown
from llgbm_shards.errors import UsageError

Tensors = dict[str, Tensor]


class AcceleratorOps:
    """What moving batches takes of a device, by torch.accelerator; UsageError where there is no such device."""

    def __init__(self, device: torch.device) -> None:
        there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if there is None or there.type != device.type:
            raise _no_device(device, f"cpu or {there}")
        index = torch.accelerator.current_device_index() if device.index is None else device.index
        if index >= torch.accelerator.device_count():
            raise _no_device(device, f"an index below {torch.accelerator.device_count()}")
        self.device = torch.device(device.type, index)
        self.pinned = device.type in ("cuda", "xpu")

    def side_stream(self) -> torch.Stream:
        """A new stream."""
        return torch.Stream(device=self.device)

    def current_stream(self) -> torch.Stream:
        """The calling thread's stream."""
        return torch.accelerator.current_stream(self.device)

    @contextmanager
    def on(self, stream: torch.Stream) -> Iterator[None]:
        """Make a stream the calling thread's own for a while."""
        before = self.current_stream()
        torch.accelerator.set_stream(stream)
        try:
            yield
        finally:
            torch.accelerator.set_stream(before)

    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor to the device, on the current stream, without waiting for it."""
        return tensor.to(self.device, non_blocking=True)

    def record(self, stream: torch.Stream) -> torch.Event:
        """Mark a stream."""
        return stream.record_event()

    def wait(self, stream: torch.Stream, event: torch.Event) -> None:
        """Let a stream wait for an event; the host does not."""
        stream.wait_event(event)

    def keep(self, tensor: Tensor, stream: torch.Stream) -> None:
        """Tell the device's allocator that another stream uses a tensor."""
        tensor.record_stream(stream)


def _no_device(device: torch.device, expected: str) -> UsageError:
    return UsageError("no such device here", where="option device", expected=expected, got=f"{device}")


def device_ops(device: str | int | torch.device) -> AcceleratorOps | None:
    """How to move batches to a device; None for the CPU, where they already are.

    Raises:
        UsageError: It is no device's name, or there is no such device.
    """
    try:
        if not isinstance(device, str | torch.device) and as_index(device) is None:
            raise TypeError(type(device).__name__)
        parsed = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            "not a device", where="option device", expected="cpu, cuda, cuda:1, ...", got=shown(device)
        ) from error
    return None if parsed.type == "cpu" else AcceleratorOps(parsed)


class SideStream:
    """Sends batches to a device. Any thread may send; the consumer's thread receives."""

    def __init__(self, ops: AcceleratorOps) -> None:
        self._ops = ops
        self._stream = ops.side_stream()
        self._lock = threading.Lock()
        #: Host tensors whose copy may still run, oldest first.
        self._copying: deque[tuple[torch.Event, Tensors]] = deque()

    def send(
        self,
        host: Tensors,
        finish: Callable[[Tensors], Tensors],
        sent: Callable[[torch.Event], None] | None = None,
    ) -> tuple[Tensors, torch.Event]:
        """Copy host tensors, held until the copy is over, and make a batch of the copies, all on the side stream.

        Returns the batch, and the event after which it is whole. ``sent`` is told the event of the copy, whether or not
        what follows succeeds.
        """
        with self._lock, self._ops.on(self._stream):
            while self._copying and self._copying[0][0].query():
                self._copying.popleft()
            copies = {name: self._ops.copy(tensor) for name, tensor in host.items()}
            copied = self._ops.record(self._stream)
            self._copying.append((copied, host))
            if sent is not None:
                sent(copied)
            tensors = finish(copies)
            return tensors, self._ops.record(self._stream)

    def receive(self, tensors: Mapping[str, Tensor], event: torch.Event) -> None:
        """Make tensors fit to use on the calling thread's stream."""
        stream = self._ops.current_stream()
        self._ops.wait(stream, event)
        for tensor in tensors.values():
            self._ops.keep(tensor, stream)

    def reclaim(self, copied: torch.Event) -> None:
        """Let go of the host tensors of a copy, and of those before it, after waiting for its end."""
        copied.synchronize()
        with self._lock:
            while any(event is copied for event, _ in self._copying):
                self._copying.popleft()

    def close(self) -> None:
        """Let go of all host tensors, after waiting for their copies."""
        with self._lock:
            while self._copying:
                self._copying[0][0].synchronize()
                self._copying.popleft()
