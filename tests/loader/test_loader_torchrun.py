"""A real job: torchrun with two ranks, killed in the middle, resumed with three and with one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from support.synthetic import write_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JOB = """
import json, os, sys, time
from pathlib import Path
import torch
from llgbm_loader import StreamingLoader

out, steps, fields = Path(sys.argv[1]), int(sys.argv[3]), ["delta"]
torch.distributed.init_process_group("gloo")
loader = StreamingLoader(sys.argv[2], batch_size=2, fields=fields, remainder="pad", seed=5)
rank = torch.distributed.get_rank()
(out / f"pid-{os.getpid()}").touch()
if (out / "state.json").exists():
    loader.load_state_dict(json.loads((out / "state.json").read_text()))
keys = []
for step, batch in enumerate(loader):
    count = torch.tensor([int(batch["valid"].sum())])
    torch.distributed.all_reduce(count)  # hangs if a rank has fewer batches
    keys += [key for key in batch["keys"] if key]
    if steps and step + 1 == steps:
        name = f"killed-{rank}.json"
        (out / name).write_text(json.dumps(keys))
        torch.distributed.barrier()
        if rank == 0:
            (out / "new.json").write_text(json.dumps(loader.state_dict()))
            (out / "new.json").rename(out / "state.json")
        time.sleep(600)
world = torch.distributed.get_world_size()
(out / f"rest-{world}-{rank}.json").write_text(json.dumps(keys))
torch.distributed.destroy_process_group()
"""


def _start(out, made, ranks, steps):
    job = out / "job.py"
    job.write_text(JOB)
    paths = os.pathsep.join(path for path in sys.path if path)
    # Not -m torch.distributed.run --standalone: its rendezvous wants a resolvable host name.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={ranks}",
        "--master-addr=127.0.0.1",
    ]
    command += [f"--master-port={_free_port()}", str(job), str(out), str(made.path), str(steps)]
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, env=env, stderr=(out / "stderr").open("w"))


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _keys(out, pattern):
    return [key for path in sorted(out.glob(pattern)) for key in json.loads(path.read_text())]


def test_killed_with_two_ranks_resumed_with_three_and_with_one(tmp_path):
    made, out = write_set(tmp_path / "set", 31), tmp_path / "out"
    out.mkdir()
    job = _start(out, made, 2, 3)
    try:
        _wait_for(out / "state.json", job)
    finally:
        # torchrun gives its workers sessions of their own: each has to be killed by itself.
        job.kill()
        for path in out.glob("pid-*"):
            os.kill(int(path.name[4:]), signal.SIGKILL)
            path.unlink()
        job.wait()
    before = _keys(out, "killed-*.json")
    assert len(before) == 12
    for ranks in (3, 1):
        job = _start(out, made, ranks, 0)
        assert job.wait(timeout=120) == 0, (out / "stderr").read_text()
        rest = _keys(out, f"rest-{ranks}-*.json")
        assert sorted(before + rest) == sorted(sample.key for sample in made.samples)


def _wait_for(path, job):
    deadline = time.monotonic() + 90
    while not path.exists():
        assert job.poll() is None, (path.parent / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
