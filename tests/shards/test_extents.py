"""Where members stand: rows of the index that lead out of their shard, or leave a part of it out, are refused."""

from __future__ import annotations

import dataclasses

import pytest

from llgbm_shards import DamageError, ShardSet
from llgbm_shards.extents import checked_extents, shard_extents


@pytest.fixture
def opened(made):
    return ShardSet(made.path)


def rows(opened):
    entry = opened.record.shards[0]
    return opened.places.slice(0, entry.samples).to_pylist(), opened.record.members, entry


def test_the_rows_of_a_shard_fill_it(opened):
    listed, fields, entry = rows(opened)
    assert list(shard_extents(listed, fields, entry)) == [opened.extents(at) for at in range(entry.samples)]


@pytest.mark.parametrize(
    "edit",
    [
        {"shard": "../train-000000.tar"},
        {"key": "a/b"},
        {"offset": -512},
        {"pieces.size": -1},
        {"pieces.size": 1 << 40},
        {"offset": 1 << 40},
    ],
)
def test_a_row_that_leads_out_of_its_shard(opened, edit):
    listed, fields, entry = rows(opened)
    with pytest.raises(DamageError, match="a row that does not fit its shard"):
        checked_extents({**listed[0], **edit}, fields, entry)


def test_a_row_of_no_shard_of_the_set(opened):
    listed, fields, _ = rows(opened)
    with pytest.raises(DamageError, match="a row that does not fit its shard"):
        checked_extents(listed[0], fields, None)


def test_rows_that_do_not_follow_each_other(opened):
    listed, fields, entry = rows(opened)
    with pytest.raises(DamageError, match="a row that does not fit its shard"):
        list(shard_extents([listed[0], *listed[2:]], fields, entry))


def test_rows_that_do_not_fill_their_shard(opened):
    listed, fields, entry = rows(opened)
    larger = dataclasses.replace(entry, size=entry.size + 512)
    for left, shard in ((listed[:-1], entry), (listed, larger)):
        with pytest.raises(
            DamageError, match=f"the rows of {entry.name} do not fill it: expected {shard.size} bytes"
        ):
            list(shard_extents(left, fields, shard))
