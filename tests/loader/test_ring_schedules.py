"""No schedule of the threads loses a permit: readers, the consumer, deaths of buffers and close, stepped."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from llgbm_loader import StreamingLoader, device, feed, reader_threads, ring
from llgbm_loader.reader_threads import Assembly, ReaderThread
from llgbm_loader.ring import BufferPool, Ring, Stopped
from support.fake_device import FakeOps
from support.stepped import SteppedLock, SteppedQueue, Stepper, by_priority, every_schedule
from support.synthetic import write_set

pytestmark = pytest.mark.slow


class Scene:
    """A ring, and threads that use it."""

    def __init__(self, monkeypatch, choose, *, ahead):
        self.stepper = Stepper(choose)
        monkeypatch.setattr(ring, "queue", self.stepper.queues)
        self.ring = Ring(BufferPool(8, capacity=4, pinned=False), ahead, self._reclaim)
        self.taken, self.stopped, self.errors, self.copying = [], 0, [], {}
        self._threads = []

    def _reclaim(self, event):
        self.copying.pop(event)

    def send(self):
        """Send the first buffer that was taken to a device: nobody else holds it then."""
        event = object()
        self.copying[event] = self.taken.pop(0)
        self.ring.sent(event)
        return event

    def thread(self, work):
        def run():
            try:
                work(self)
            except Stopped:
                self.stopped += 1
            except BaseException as error:  # noqa: BLE001 - the test raises it
                self.errors.append(error)
            finally:
                self.stepper.ended()

        thread = threading.Thread(target=run, daemon=True)
        self.stepper.adopt(thread)
        self._threads.append(thread)
        thread.start()

    def end(self):
        self.stepper.let_go()
        self.ring.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.errors


def take(scene):
    scene.taken.append(scene.ring.take())


def consumer(*steps):
    """A consumer that holds some buffers, or lets go of the first that was taken."""

    def work(scene):
        for step in steps:
            if step == "drop":
                del scene.taken[:1]
            else:
                scene.ring.allow(step)

    return work


@pytest.mark.parametrize(
    ("ahead", "readers", "steps"),
    [
        (1, 3, (2,)),
        (1, 3, (2, 3)),
        (1, 4, (3,)),
        (2, 4, ("drop", 2)),
        (1, 3, (2, "drop", 1)),
        (1, 3, (2, "drop", 1, 2)),
        (1, 4, ("drop", 2, "drop", 1)),
    ],
)
def test_a_reader_waits_only_while_all_that_is_allowed_is_in_use(monkeypatch, ahead, readers, steps):
    held = [step for step in steps if step != "drop"][-1]
    schedules = 0
    for choose in every_schedule(2):
        scene = Scene(monkeypatch, choose, ahead=ahead)
        for _ in range(readers):
            scene.thread(take)
        scene.thread(consumer(*steps))
        waiting = scene.stepper.run()
        # What lives may be more than is allowed now, when it was taken while more was.
        assert not waiting or len(scene.taken) >= ahead + held
        schedules += 1
        scene.end()
        assert len(waiting) == scene.stopped
    assert schedules > 15


@pytest.mark.parametrize("steps", [(), (2,), ("drop", 1), (3, 1)])
def test_close_ends_every_reader_that_waits_or_comes_later(monkeypatch, steps):
    for choose in every_schedule(1):
        scene = Scene(monkeypatch, choose, ahead=1)
        for _ in range(2):
            scene.thread(take)
        scene.thread(consumer(*steps))
        scene.thread(lambda scene: scene.ring.close())
        assert scene.stepper.run() == []
        scene.thread(take)
        assert scene.stepper.run() == []
        scene.end()
        assert scene.stopped > 0


def test_a_reader_that_waits_is_told_of_copies_that_begin_later(monkeypatch):
    """One buffer is about to be let go of, one is sent and its batch received, so that a second reader comes."""
    for choose in every_schedule(3):
        scene = Scene(monkeypatch, choose, ahead=2)
        scene.taken = [scene.ring.take() for _ in range(3)]
        received = []

        def drop(scene):
            scene.stepper.gate()
            del scene.taken[-1:]

        def send_and_come_back(scene, received=received):
            scene.stepper.gate()
            received.append(scene.send())
            take(scene)

        scene.thread(take)
        scene.thread(drop)
        scene.thread(send_and_come_back)
        assert scene.stepper.run() == []
        scene.end()


def test_memory_goes_to_the_pool_once_however_many_threads_close(monkeypatch):
    for choose in every_schedule(2):
        scene = Scene(monkeypatch, choose, ahead=2)
        scene.taken = [scene.ring.take() for _ in range(3)]
        put = []
        monkeypatch.setattr(BufferPool, "put", lambda pool, use, put=put: put.append(use.buffer.ctypes.data))
        for _ in range(2):
            scene.thread(lambda scene: (scene.ring.close(), scene.ring.drain()))
        scene.thread(consumer("drop", 1))
        assert scene.stepper.run() == []
        assert len(put) == len(set(put)) <= 3
        scene.end()


KEEP = {
    "none": lambda kept, index: kept.clear(),
    "the last two": lambda kept, index: kept.__delitem__(slice(None, -2)),
    "every fourth": lambda kept, index: index % 4 and kept.pop(),
    "all": lambda kept, index: None,
}


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize(("readers", "ahead"), [(1, 1), (2, 1), (2, 2), (3, 2), (6, 4)])
def test_an_epoch_ends_in_whatever_order_threads_go_on(tmp_path, monkeypatch, keep, readers, ahead):
    made = write_set(tmp_path / "set", 10, texts=False, delta_width=0)
    for seed in range(25):
        received = _stepped_epoch(monkeypatch, made, KEEP[keep], by_priority(seed), readers, ahead)
        assert received == 10, seed


@pytest.mark.parametrize(("readers", "ahead"), [(1, 1), (2, 2), (3, 2), (6, 4)])
def test_an_epoch_on_a_device_that_is_as_slow_as_can_be_ends_too(tmp_path, monkeypatch, readers, ahead):
    made = write_set(tmp_path / "set", 10, texts=False, delta_width=0)
    monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: FakeOps())
    for seed in range(50):
        received = _stepped_epoch(monkeypatch, made, KEEP["all"], by_priority(seed), readers, ahead)
        assert received == 10, seed


class Lingering(SteppedQueue):
    """A queue whose putter may linger in its frames, and with all that these hold, when others have the item."""

    def put(self, item):
        super().put(item)
        self._stepper.gate()


def _stepped_epoch(monkeypatch, made, keep, choose, readers, ahead):
    stepper = Stepper(choose)
    start, run = threading.Thread.start, reader_threads.Work.run

    def start_stepped(thread):
        stepper.adopt(thread)
        start(thread)

    def run_stepped(work):
        try:
            run(work)
        finally:
            stepper.ended()

    received = []

    def consume():
        kept = []
        for index, batch in enumerate(loader):
            kept.append(batch)
            del batch
            keep(kept, index)
            stepper.gate()  # the consumer works on its batch, while readers go on
            received.append(index)
            if index == 9:
                stepper.let_go()  # the end joins the readers, which is no matter of queues
        stepper.ended()

    with monkeypatch.context() as patch:
        for module in (ring, reader_threads):
            patch.setattr(module, "queue", stepper.queues)
        locks = SimpleNamespace(Lock=lambda: SteppedLock(stepper))
        patch.setattr(device, "threading", locks)
        patch.setattr(feed, "Assembly", lambda *args: Assembly(*args, done=Lingering(stepper)))
        patch.setattr(ReaderThread, "start", start_stepped)
        patch.setattr(reader_threads.Work, "run", run_stepped)
        loader = StreamingLoader(made.path, batch_size=1, readers=readers, prefetch_batches=ahead)
        consumer = threading.Thread(target=consume, daemon=True)
        stepper.adopt(consumer)
        consumer.start()
        stuck = stepper.run()
        stepper.let_go()
        if stuck:
            loader.close()
        consumer.join(60)
    assert not stuck, f"{len(stuck)} threads wait in vain after {len(received)} batches"
    return len(received)
