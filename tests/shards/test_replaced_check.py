"""Check and ShardSet while the set is replaced: what was opened is judged, never a mixture of two sets."""

from __future__ import annotations

import pytest

from llgbm_shards import DamageError, ShardSet, check, check_set
from support.other_sets import FIRST, WAYS, exchange, put_back, rename_over, two_sets


@pytest.fixture
def made(tmp_path):
    return two_sets(tmp_path, 6)


def _after(monkeypatch, step, happens):
    """Something happens after a step of the check and before the next."""
    plain = getattr(check_set, step)

    def stepped(*args, **options):
        result = plain(*args, **options)
        happens()
        return result

    monkeypatch.setattr(check_set, step, stepped)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["ShardSet", "check_files", "check_presence"])
def test_replaced_while_it_is_checked(made, way, step, monkeypatch):
    done, digest = [], ShardSet(made[0].path).digest
    _after(monkeypatch, step, lambda: done or (done.append(1), way(*made)))
    report = check(made[0].path, workers=1)
    assert report.exit_code == 1
    assert report.digest == digest
    shards = [finding for finding in report.findings if finding.shard.endswith(".tar")]
    assert [finding.shard for finding in shards] == [entry.name for entry in made[0].record.shards]
    assert all("the set was replaced" in finding.what for finding in shards)


def test_a_quick_check_says_that_the_set_is_gone(made, monkeypatch):
    _after(monkeypatch, "ShardSet", lambda: exchange(*made))
    report = check(made[0].path, level="quick")
    assert {finding.what.split(":")[0] for finding in report.findings} == {"the set was replaced"}


def test_shards_that_are_put_back_meanwhile_are_sound(made, monkeypatch):
    _after(monkeypatch, "check_presence", lambda: put_back(made[0]))
    assert check(made[0].path).sound


def test_samples_of_a_set_that_was_replaced(made):
    opened = ShardSet(made[0].path)
    rename_over(*made)
    with pytest.raises(DamageError, match="the set was replaced") as caught:
        opened.read_sample(0)
    assert (caught.value.shard, caught.value.key) == (FIRST, made[0].samples[0].key)


def test_the_index_of_a_set_that_was_replaced(made):
    opened = ShardSet(made[0].path)
    exchange(*made)
    with pytest.raises(DamageError, match=r"index\.parquet: .*the set was replaced"):
        _ = opened.keys
