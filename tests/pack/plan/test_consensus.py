"""One layout for a set: what most of the zoo has, and words for who does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from llgbm_pack.plan.consensus import choose_layout, keep_fitting
from llgbm_pack.plan.options import LayoutOptions
from llgbm_pack.plan.survey import Teacher
from llgbm_shards.errors import PlanError

Q = (("layers.0.q", 32, 48),)
QV = (*Q, ("layers.0.v", 32, 16))


def teachers(*kinds):
    """(count, dtype, rank, shapes) of each kind."""
    made = [kind[1:] for kind in kinds for _ in range(kind[0])]
    return [
        Teacher(f"run_{number}", Path("w"), None, dtype, rank, shapes, "base")
        for number, (dtype, rank, shapes) in enumerate(made)
    ]


def fit(found, **more):
    layout = choose_layout(found, LayoutOptions(**more), Path("zoo"))
    fitting, skipped = keep_fitting(found, layout, LayoutOptions(**more))
    return layout, [teacher.path for teacher in fitting], {skip.checkpoint: skip for skip in skipped}


def test_most_decide_and_the_rest_is_skipped_as_a_fault():
    layout, fitting, skipped = fit(teachers((3, "bfloat16", 8, Q), (2, "float32", 8, Q)))
    assert (layout.dtype, layout.rank, layout.chunk) == ("bfloat16", 8, 16)
    assert fitting == ["run_0", "run_1", "run_2"]
    assert all(skip.fault for skip in skipped.values())
    assert "expected bfloat16, got float32" in skipped["run_3"].reason
    assert "--dtype" in skipped["run_3"].reason


def test_a_tie_names_both():
    with pytest.raises(PlanError, match=r"tie: 2 of bfloat16, rank 8.*; 2 of float32, rank 8") as caught:
        choose_layout(teachers((2, "bfloat16", 8, Q), (2, "float32", 8, Q)), LayoutOptions(), Path("zoo"))
    assert caught.value.exit_code == 2


def test_a_tie_of_dtypes_ends_with_dtype():
    layout, fitting, skipped = fit(teachers((2, "bfloat16", 8, Q), (2, "float32", 8, Q)), dtype="float16")
    assert (layout.dtype, len(fitting), skipped) == ("float16", 4, {})


def test_rank_pads_lower_and_refuses_higher():
    found = teachers((2, "bfloat16", 4, Q), (2, "bfloat16", 8, Q), (1, "bfloat16", 16, Q))
    layout, fitting, skipped = fit(found, rank=8)
    assert layout.rank == 8
    assert fitting == ["run_0", "run_1", "run_2", "run_3"]
    assert "expected 8, got 16" in skipped["run_4"].reason
    assert "--rank 16" in skipped["run_4"].reason


def test_who_is_above_the_rank_has_no_say_in_the_module_table():
    found = teachers((3, "bfloat16", 16, QV), (2, "bfloat16", 8, Q))
    layout, fitting, _ = fit(found, rank=8)
    assert [module.name for module in layout.modules] == ["layers.0.q"]
    assert fitting == ["run_3", "run_4"]


def test_without_rank_a_lower_one_is_not_padded_unasked():
    _, fitting, skipped = fit(teachers((2, "bfloat16", 8, Q), (1, "bfloat16", 4, Q)))
    assert fitting == ["run_0", "run_1"]
    assert "--rank 8" in skipped["run_2"].reason


def test_an_absent_module_fits_a_foreign_or_wider_one_does_not():
    wide = (("layers.0.q", 32, 64), QV[1])
    foreign = (*Q, ("layers.0.k", 32, 16))
    found = teachers(
        (3, "bfloat16", 8, QV), (1, "bfloat16", 8, Q), (1, "bfloat16", 8, wide), (1, "bfloat16", 8, foreign)
    )
    _, fitting, skipped = fit(found)
    assert fitting == ["run_0", "run_1", "run_2", "run_3"]
    assert "layers.0.q expected (in, out) (32, 48), got (32, 64)" in skipped["run_4"].reason
    assert "layers.0.k is not a module of most of the zoo" in skipped["run_5"].reason


def test_chunk_is_taken_when_given():
    assert fit(teachers((1, "bfloat16", 8, QV)), chunk=8)[0].chunk == 8
