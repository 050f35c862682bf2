"""A full disk: what is partial is removed, what is finished is kept, and a resume works once there is space."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess

import pytest

from support.commands import here
from support.tiny_zoo import tree, write_zoo

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 400 KiB."""
    if os.geteuid() != 0:
        pytest.skip("small_disk needs root to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("small_disk: mount is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full(tmp_path, small_disk, workers):
    write_zoo(tmp_path / "zoo", 12)
    ballast, out = small_disk / "ballast", small_disk / "out"
    ballast.write_bytes(bytes(330 << 10))
    args = ("build", tmp_path / "zoo", out, "--shard-bytes", 3000, "--workers", workers, "-q")
    done = here(*args)
    assert done.code == 3
    assert re.search(
        r"no space left on the device: expected \d+ bytes free, got \d+ bytes free\. Free some", done.err
    )
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
    kept = len(list(out.glob("*.tar")))
    assert kept >= 1
    ballast.unlink()
    done = here(*args, "--format", "json")
    assert (done.code, done.json["packed"]) == (0, 12)
    assert done.json["resumed"] >= 1
    assert here("build", tmp_path / "zoo", tmp_path / "out", *args[3:]).code == 0
    assert tree(out) == tree(tmp_path / "out")


def test_disk_full_from_the_start(tmp_path, small_disk):
    write_zoo(tmp_path / "zoo", 2)
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(1 << 20))
    done = here("build", tmp_path / "zoo", small_disk / "out", "--workers", 1, "-q")
    assert done.code == 3
    assert "no space left on the device" in done.err
