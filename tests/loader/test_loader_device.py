"""The way to a device: by a fake one that checks the order of copy, event and reuse, and on CUDA when there is one."""

from __future__ import annotations

import threading

import pytest
import torch

from llgbm_loader import StreamingLoader
from llgbm_loader.device import AcceleratorOps, SideStream, device_ops
from llgbm_shards.errors import UsageError
from support.fake_device import FakeOps
from support.synthetic import small_layout, write_set


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", 24)


@pytest.fixture
def fake(monkeypatch):
    ops = FakeOps()
    monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: ops)
    return ops


@pytest.mark.parametrize("options", [{}, {"frame": "none", "dtype": None}, {"padding": "longest"}])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_buffer_is_filled_again_only_after_the_event_of_its_copy(made, fake, options, prefetch):
    loader = StreamingLoader(made.path, batch_size=2, prefetch_batches=prefetch, **options)
    kept = []
    for _ in range(3):
        for batch in loader:
            assert all(value.data_ptr() in fake.kept for name, value in batch.items() if name != "keys")
            kept.append((batch, batch["tokens"].clone()))
    assert fake.broken == 0
    # The ring is small, so it had to wait; and it is a ring, so it waited for all but the last few.
    assert fake.log.count("synchronize") >= 36 - 3 * (prefetch + 1)
    for batch, tokens in kept:
        assert torch.equal(batch["tokens"].nan_to_num(), tokens.nan_to_num())


def test_copy_event_finish_event_then_the_consumers_stream_waits(made, fake):
    loader = StreamingLoader(made.path, batch_size=24, readers=1, prefetch_batches=1)
    list(loader)
    # tokens, scales, ids, mask, delta, has_delta, valid; the copy's event; the batch's event; the consumer.
    assert fake.log == ["copy"] * 7 + ["record", "record", "wait"]


def test_the_fake_device_notices_a_buffer_used_too_early(made, fake, monkeypatch):
    def forget(self, copied):
        self._copying.clear()

    loader = StreamingLoader(made.path, batch_size=2, prefetch_batches=1)
    events = []
    plain = fake.record
    monkeypatch.setattr(fake, "record", lambda stream: events.append(plain(stream)) or events[-1])
    monkeypatch.setattr("llgbm_loader.device.SideStream.reclaim", forget)
    for _ in loader:
        pass
    for event in events:
        event.synchronize()
    assert fake.broken > 0


def test_an_iterator_that_a_reader_of_another_one_drops_does_not_block(made, fake, monkeypatch):
    loader = StreamingLoader(made.path, batch_size=2, readers=1, prefetch_batches=2)
    left, sent, got, old = [iter(loader)], [], [], []
    holds, waits = threading.Event(), threading.Event()
    send, copy = SideStream.send, fake.copy

    def sends(side, host, finish, sent_event):
        if sent and threading.current_thread() in (old or threading.enumerate()):
            assert holds.wait(30)
            waits.set()
        sent.append(host["valid"])
        return send(side, host, finish, sent_event)

    def copies(tensor):
        if old and left:  # a reader of the second iteration, which holds the side stream's lock
            holds.set()
            assert waits.wait(30)
            left.clear()  # as the garbage collector may at any moment
        return copy(tensor)

    monkeypatch.setattr(SideStream, "send", sends)
    monkeypatch.setattr(fake, "copy", copies)
    next(left[0])
    old += threading.enumerate()
    consumer = threading.Thread(target=lambda: got.extend(loader), daemon=True)
    consumer.start()
    consumer.join(30)
    assert not consumer.is_alive()
    assert len(got) == 12


@pytest.mark.parametrize("zero_std", ["nan", "zeros"])
def test_a_device_gives_what_the_cpu_gives(made, monkeypatch, zero_std):
    options = {
        "batch_size": 5,
        "remainder": "pad",
        "zero_std": zero_std,
        "num_texts": 2,
        "padding": "longest",
    }
    path = made.path / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    wanted = list(StreamingLoader(made.path, on_bad_sample="skip", **options))
    monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: FakeOps())
    got = list(StreamingLoader(made.path, on_bad_sample="skip", **options))
    assert sum(int((~batch["valid"]).sum()) for batch in got) == 2
    _equal_batches(got, wanted)


def _equal_batches(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if name == "keys":
                assert one[name] == value
            else:
                assert one[name].dtype == value.dtype
                assert torch.equal(one[name].isnan(), value.isnan())
                assert torch.equal(one[name].nan_to_num(), value.nan_to_num())


def test_a_device_that_is_not_there_is_refused(made):
    assert device_ops(torch.device("cpu")) is None
    for path in (made.path, made.path / "no set"):  # it is refused before any set is opened
        with pytest.raises(UsageError, match="no such device"):
            StreamingLoader(path, device="cuda:77")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not available")


@needs_cuda
def test_cuda_gives_what_the_cpu_gives(tmp_path):
    made = write_set(tmp_path / "set", 24, layout=small_layout(rank=16, chunk=64, modules=8, tokens=32))
    options = {"batch_size": 5, "remainder": "pad", "frame": "none", "num_texts": 2}
    wanted = [batch for _ in range(3) for batch in StreamingLoader(made.path, **options)]
    loader = StreamingLoader(made.path, device="cuda", prefetch_batches=1, **options)
    for _ in range(3):
        loader.set_epoch(0)
        got = []
        for batch in loader:
            torch.cuda._sleep(1_000_000)  # a busy consumer's stream
            got.append({name: v.cpu() if name != "keys" else v for name, v in batch.items()})
        _equal_batches(got, wanted[:5])
        loader.set_epoch(1)


@needs_cuda
def test_cuda_needs_no_host_sync(tmp_path):
    made = write_set(tmp_path / "set", 24)
    loader = StreamingLoader(made.path, batch_size=4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert all(batch["tokens"].is_cuda for batch in loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert AcceleratorOps(torch.device("cuda")).pinned
