"""The same, with everything a build needs already imported."""

from __future__ import annotations

from hostile.target import command  # noqa: F401 - what the children call
from llgbm_pack.cli import (
    progress,  # noqa: F401
    render,  # noqa: F401
)
from llgbm_pack.packing import build as build_set  # noqa: F401
