"""PackOptions takes what Python users write, and refuses what would be taken for something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llgbm_pack import PackOptions
from llgbm_pack.plan.options import recorded_options
from llgbm_shards.errors import UsageError


def test_strings_and_lists_are_taken(tmp_path):
    given = PackOptions(
        zoo=str(tmp_path / "zoo"),
        out=str(tmp_path / "out"),
        deltas=str(tmp_path / "deltas"),
        include=["a*", "b*"],
        forms=["prompt", "answer"],
        maps=[["/old", "/new"]],
        split=0,
    )
    same = PackOptions(
        zoo=tmp_path / "zoo",
        out=tmp_path / "out",
        deltas=tmp_path / "deltas",
        include=("a*", "b*"),
        forms=("prompt", "answer"),
        maps=(("/old", "/new"),),
    )
    assert given == same


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"zoo": None}, "zoo: not a path"),
        ({"deltas": 3}, "deltas: not a path"),
        ({"include": "a*"}, "include: not a sequence of strings"),
        ({"exclude": [1]}, "exclude: not a sequence of strings"),
        ({"forms": "prompt"}, "forms: not a sequence of strings"),
        ({"forms": ()}, "forms: each form once"),
        ({"maps": ("/old", "/new")}, "maps: not"),
        ({"maps": "/old=/new"}, "maps: not"),
        ({"maps": [("/old",)]}, "maps: not pairs"),
        ({"rank": 1.5}, "rank: must be at least 1"),
        ({"limit": True}, "limit: must be at least 1"),
        ({"shard_bytes": None}, "shard_bytes: must be at least 1"),
        ({"seed": "0"}, "seed: must fit 64 bits"),
        ({"seed": 2**63}, "seed: must fit 64 bits"),
        ({"split": "0.1"}, "split: must be a fraction"),
        ({"split": 1}, "split: must be a fraction"),
        ({"alpha": "16"}, "alpha: must be a positive number"),
        ({"dtype": None}, "dtype: unknown value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, wrong, said):
    with pytest.raises(UsageError, match=said):
        PackOptions(**{"zoo": tmp_path / "zoo", "out": tmp_path / "out", **wrong})


@pytest.mark.parametrize("name", ["zoo", "out", "deltas", "texts"])
def test_a_path_that_no_file_could_record(tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(UsageError, match=rf"{name}: the path is not UTF-8.*\\xff"):
        PackOptions(**{"zoo": tmp_path / "zoo", "out": tmp_path / "out", name: path})


def test_what_a_set_records_gives_the_options_again(tmp_path):
    places = {"zoo": tmp_path / "zoo", "out": tmp_path / "out"}
    for options in (
        PackOptions(**places),
        PackOptions(
            **places, rank=4, chunk=8, alpha=2, max_texts=None, limit=3, forms=("answer",), split=0.5
        ),
    ):
        assert recorded_options(options.content(), **places) == options
    with pytest.raises(UsageError, match=r"does not record the options.*joiner"):
        recorded_options(
            {name: value for name, value in options.content().items() if name != "joiner"}, **places
        )
