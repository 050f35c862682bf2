"""The same facts as an error of another class."""

from llgbm_shards.errors import CheckpointError, DamageError, HeaderError, PlanError

HEADER = HeaderError("too large", where="a.json", expected="at most 4 bytes", got="5 bytes")


def test_facts_stay_unless_others_are_given():
    assert type(HEADER.as_(CheckpointError)) is CheckpointError
    assert str(HEADER.as_(CheckpointError)) == str(HEADER)
    mended = HEADER.as_(PlanError, "its json is too large", where="", do="Mend it.")
    assert str(mended) == "its json is too large: expected at most 4 bytes, got 5 bytes. Mend it."


def test_damage_has_a_place_of_its_own():
    damage = HEADER.as_(DamageError, shard="train-0.tar", key="k")
    assert (damage.where, damage.shard, damage.key) == ("train-0.tar sample k", "train-0.tar", "k")
    assert damage.at("other", "json").where == "train-0.tar sample other json"
