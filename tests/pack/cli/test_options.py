"""Values of options that are refused in one line."""

from __future__ import annotations

import pytest

from support.commands import here


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--shard-bytes", "3x"),
        ("--shard-bytes", "9" * 400),
        ("--map", "x"),
        ("--split", "2"),
        ("--max-texts", "0"),
        ("--max-texts", "\N{SUPERSCRIPT TWO}"),
    ],
)
def test_a_value_that_is_none(tmp_path, option, value):
    done = here("build", tmp_path, tmp_path / "out", option, value)
    assert done.code == 2
    assert f"Invalid value for '{option}': '{value}' is " in done.err
