"""The same, with everything a build needs already imported."""

from __future__ import annotations

from hostile.target import command  # noqa: F401 - what the children call
from llgbm_pack import build_set, progress, render  # noqa: F401
