"""The built wheel holds exactly the three packages and works in an empty venv."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[2]
PACKAGES = {"llgbm_shards": "shards", "llgbm_loader": "loader", "llgbm_pack": "pack"}


def call(*args, **options):
    done = subprocess.run(
        list(map(str, args)), check=False, capture_output=True, text=True, timeout=200, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git would clone, so that no build folder appears in the checkout."""
    import shutil

    root = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES.values():
        shutil.copytree(REPO / name, root / "source" / name, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        if (REPO / name).exists():
            shutil.copy(REPO / name, root / "source" / name)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", root]
    call(sys.executable, "-m", "pip", "wheel", *flags, root / "source")
    (made,) = root.glob("*.whl")
    return made


def test_contents(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    sources = {
        path.relative_to(REPO / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (REPO / folder / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert set(names) == sources
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_in_an_empty_venv(wheel, tmp_path):
    venv = tmp_path / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    bin_ = venv / "bin"
    (site,) = venv.glob("lib/python*/site-packages")
    call(
        sys.executable,
        "-m",
        "pip",
        "--python",
        bin_ / "python",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        wheel,
    )
    # The dependencies, from where they are installed: a plain .pth line reads no .pth files there (no editable install).
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import llgbm_{0} as p; print(p.__file__); print(sorted(p.__all__))"
    for package in PACKAGES:
        out = call(bin_ / "python", "-c", where.format(package.removeprefix("llgbm_")), cwd=tmp_path)
        assert out.startswith(str(site / package)), out
    assert call(bin_ / "llgbm-pack", "--version", cwd=tmp_path).startswith("llgbm-pack, version 0.1.0")
    assert "Usage: llgbm-check" in call(bin_ / "llgbm-check", "--help", cwd=tmp_path)
    names = "from llgbm_pack import *; from llgbm_shards import *; from llgbm_loader import *; print(build, check)"
    assert "function build" in call(bin_ / "python", "-c", names, cwd=tmp_path)
