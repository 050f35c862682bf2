"""Files that the documents name are there, and the drawing of the house has the rooms that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACK = ROOT / "pack/llgbm_pack"
#: Where a document's paths may start.
STARTS = (ROOT, PACK, ROOT / "shards/llgbm_shards", ROOT / "loader/llgbm_loader")


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"])
def test_named_files_are_there(name):
    text = (ROOT / name).read_text()
    paths = re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+\w*)`", text)
    paths += [path for path in re.findall(r"\]\(([^)]+)\)", text) if ":" not in path]
    assert paths
    gone = {path for path in paths if not any((start / path).exists() for start in STARTS)}
    assert gone <= {"__init__.py", "conftest.py"}


def test_every_room_is_described_and_drawn():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {path.name for path in PACK.iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"`pack/llgbm_pack/(\w+)/`", text)) == rooms
    assert rooms <= set(text.split("```")[1].split())
