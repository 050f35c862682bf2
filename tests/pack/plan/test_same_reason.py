"""A fault that many checkpoints share is told once, with their count and the first names."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from llgbm_pack.plan.same_reason import grouped
from support.commands import here
from support.tiny_zoo import random_pairs, write_adapter


def test_up_to_three_rows_of_a_reason_stand_for_themselves():
    rows = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")]
    assert grouped(rows) == ["a: x", "c: x", "d: x", "b: y"]


def test_more_are_one_line_where_the_first_of_them_was():
    rows = [("a", "x"), ("b", "y"), *((f"{number}", "x") for number in range(1000)), ("", "of the build")]
    assert grouped(rows) == ["1001 checkpoints (a, 0, 1, ...): x", "b: y", "of the build"]


def test_the_name_of_the_file_itself_makes_no_other_reason():
    rows = [(f"task/{number}", f"{number}.safetensors: bad, no config") for number in range(9)]
    assert grouped(rows) == ["9 checkpoints (task/0, task/1, task/2, ...): bad, no config"]


def test_rows_without_a_name_are_counted_and_not_named():
    assert grouped([("", "x")] * 5) == ["x (5 times)"]
    assert grouped([("", "x")] * 2) == ["x", "x"]
    rows = [("", "x")] * 4 + [(name, "x") for name in "abcd"]
    assert grouped(rows) == ["4 checkpoints (a, b, c, ...): x", "x (4 times)"]


def test_a_checkpoint_counts_once_for_a_reason():
    assert grouped([("a", "x")] * 5 + [("b", "x")]) == ["a: x", "b: x"]
    rows = [(name, "x") for name in "aabbccddee"]
    assert grouped(rows) == ["5 checkpoints (a, b, c, ...): x"]


@pytest.fixture
def no_alpha(tmp_path):
    """Two good checkpoints, twelve whose config lacks lora_alpha, twelve single files without a config."""
    for number in range(2):
        write_adapter(tmp_path / f"zoo/good/{number}", number)
    for number in range(12):
        directory = write_adapter(tmp_path / f"zoo/bare/{number:02d}", number)
        config = json.loads((directory / "adapter_config.json").read_text())
        del config["lora_alpha"]
        (directory / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / "zoo/files").mkdir(exist_ok=True)
        save_file(random_pairs(number), tmp_path / f"zoo/files/{number:02d}.safetensors")
    return tmp_path


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_missing_alphas_are_a_line_a_reason(no_alpha, more):
    done = here("build", no_alpha / "zoo", no_alpha / "out", "--workers", 1, "-q", *more)
    assert done.code == 1
    skipped = [line for line in done.out.splitlines() if line.startswith("skipped    1")]
    assert [line.partition(" (")[0] for line in skipped if "alpha is not known" in line] == [
        "skipped    12 checkpoints"
    ] * 2
    assert "bare/00, bare/01, bare/02, ..." in done.out
    assert len(done.out.splitlines()) < 16


def test_verbose_names_each_of_them(no_alpha):
    done = here("build", no_alpha / "zoo", no_alpha / "out", "--workers", 1, "-q", "-v")
    assert done.out.count("alpha is not known") == 24


def test_a_zoo_without_any_alpha_is_refused_in_two_lines_of_reasons(no_alpha):
    done = here("build", no_alpha / "zoo", no_alpha / "out", "--exclude", "good/*", "-q")
    assert done.code == 2
    assert done.err.count("alpha is not known") == 2
    assert "none of 24 checkpoints can be packed" in done.err
