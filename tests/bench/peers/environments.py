"""Virtual environments of the peers: outside the repository, with this environment's torch, kept between runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llgbm-bench-peers"
TIMEOUT_S = 280


class InstallError(Exception):
    """A peer cannot be installed; the text is the reason."""


def python_for(package: str) -> Path:
    """Interpreter of an environment with ``package``, made on first use.

    Raises:
        InstallError: pip does not find a way, or would replace torch.
    """
    root = CACHE / f"{package}-{sysconfig.get_python_version()}-torch{torch.__version__}"
    python, done = root / "bin" / "python", root / ".installed"
    if done.exists():
        return python
    venv.create(root, with_pip=True, clear=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(root)})
    here = sysconfig.get_path("purelib")
    (Path(packages) / "zz_base.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    constraints = root / "constraints.txt"
    constraints.write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        constraints,
        package,
    ]
    _refuse_torch(_pip([*install, "--dry-run", "--report", "-"]))
    _pip(install)
    done.touch()
    return python


def _pip(command: list[str | Path]) -> str:
    try:
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"pip took longer than {TIMEOUT_S} s") from error
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError(" ".join(errors)[:300] or f"pip ended with {run.returncode}")
    return run.stdout


def _refuse_torch(report: str) -> None:
    """A peer that wants another torch, or its gigabytes of CUDA, is not installed."""
    names = [entry["metadata"]["name"].lower() for entry in json.loads(report)["install"]]
    heavy = [name for name in names if name in {"torch", "triton"} or name.startswith("nvidia-")]
    if heavy:
        raise InstallError(f"pip would install {', '.join(heavy)}")


def interpreter(package: str) -> Path:
    """This interpreter for what the project depends on, else one of a peer's own."""
    return Path(sys.executable) if package in {"llgbm-pack", "webdataset"} else python_for(package)
