"""Packing takes one torch thread a process, and leaves the caller's count as it was."""

from __future__ import annotations

import json

import pytest
import torch

from llgbm_pack import PackOptions, build
from llgbm_pack.packing import pool_worker
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.upkeep.repair import repair
from llgbm_pack.upkeep.repair_shards import RepairOptions
from support.thread_counts import pack_and_count
from support.tiny_zoo import write_zoo


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch):
    """Thread counts while weights were encoded."""
    counts = []
    encode = PieceEncoder.encode

    def watched(self, *args):
        counts.append(torch.get_num_threads())
        return encode(self, *args)

    monkeypatch.setattr(PieceEncoder, "encode", watched)
    return counts


@pytest.mark.usefixtures("three_threads")
def test_build_in_the_callers_process(zoo, tmp_path, seen):
    build(PackOptions(zoo=zoo, out=tmp_path / "out", workers=1))
    assert seen == [1] * 4
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_build_that_fails_gives_the_threads_back(zoo, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError(f"{torch.get_num_threads()}")

    monkeypatch.setattr(PieceEncoder, "encode", fail)
    with pytest.raises(RuntimeError, match="1"):
        build(PackOptions(zoo=zoo, out=tmp_path / "out", workers=1))
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_repair(zoo, tmp_path, seen):
    build(PackOptions(zoo=zoo, out=tmp_path / "out", workers=1))
    seen.clear()
    (tmp_path / "out/train-000000.tar").unlink()
    assert repair(RepairOptions(out=tmp_path / "out", zoo=zoo)).exit_code == 0
    assert seen == [1] * 4
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("cores", [1, 5])
def test_worker_processes_share_the_cores(tmp_path, monkeypatch, cores):
    """Torch takes one thread in each; the text tokenizers' threads are divided between them."""
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool_worker, "pack", pack_and_count)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    paths = write_zoo(tmp_path / "zoo", 2)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=2, shard_bytes=1))
    for path in paths:
        counts = json.loads((tmp_path / "zoo" / path / "threads.json").read_text())
        assert counts == {"torch": 1, "texts": str(max(1, cores // 2))}
