"""A device that is none, with the order of its operations written down."""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager

import torch


class FakeEvent:
    """Passes only when somebody waits for it: the slowest device there can be."""

    def __init__(self, ops, copies):
        self.ops, self.copies, self.passed = ops, copies, False

    def query(self):
        return self.passed

    def synchronize(self):
        if not self.passed:
            self.ops.log.append("synchronize")
            self.passed = True
            for address, data in self.copies:
                self.ops.broken += ctypes.string_at(address, len(data)) != data


class FakeOps:
    """A device whose copies read the host buffer at any moment up to their event."""

    pinned = False

    def __init__(self):
        self.log, self.broken, self.fresh = [], 0, []
        self.streams = threading.local()
        self.kept = set()

    def side_stream(self):
        return "side"

    def current_stream(self):
        return getattr(self.streams, "now", "consumer")

    @contextmanager
    def on(self, stream):
        before = self.current_stream()
        self.streams.now = stream
        yield
        self.streams.now = before

    def copy(self, tensor):
        assert self.current_stream() == "side"
        self.log.append("copy")
        if tensor.dtype == torch.bfloat16:  # the one that lies in the ring; no reference to it is kept here
            address, size = tensor.data_ptr(), tensor.nbytes
            self.fresh.append((address, ctypes.string_at(address, size)))
        return tensor.clone()

    def record(self, stream):
        assert stream == self.current_stream() == "side"
        self.log.append("record")
        copies, self.fresh = self.fresh, []
        return FakeEvent(self, copies)

    def wait(self, stream, event):
        assert stream == "consumer"
        self.log.append("wait")

    def keep(self, tensor, stream):
        assert stream == "consumer"
        self.kept.add(tensor.data_ptr())
