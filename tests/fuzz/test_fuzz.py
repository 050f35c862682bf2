"""The targets of ``make fuzz`` without the fuzzer: seeds, old findings, and a few changes to each, always the same."""

from __future__ import annotations

import json

import pytest

from fuzz.judge import Finding, judge
from fuzz.mutate import mutate_bytes, mutate_json
from fuzz.regressions import REGRESSIONS
from fuzz.seeds import make_seeds
from fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.slow

_CHANGES = 50
#: Seeds that show what is refused.
_REFUSED = {"npy-objects", "npy-2", "npy-fortran", "plan", "lock"}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken_and_changed_ones_taken_or_refused(name, seeds):
    target = TARGETS[name]
    for seed in target.seeds:
        taken = judge(target, seeds[seed])
        assert taken or seed in _REFUSED or name in ("safetensors", "index", "texts member"), seed
        for number in range(_CHANGES):
            judge(target, mutate_bytes(seeds[seed], number))
            changed = mutate_json(seeds[seed], number) if target.json else None
            if changed is not None:
                judge(target, changed)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_old_findings_stay_mended(name):
    for data in REGRESSIONS[name]:
        judge(TARGETS[name], data)


@pytest.mark.parametrize("text", [b"checkpoint", b"train-000000.tar", b"arc_e", b"tiny"])
def test_an_index_whose_names_or_values_are_no_text_is_refused(seeds, text):
    damaged = seeds["index"].replace(text, b"\xff" + text[1:])
    assert damaged != seeds["index"]
    assert not judge(TARGETS["index"], damaged)


def test_a_message_shows_the_beginning_of_a_long_name(seeds):
    fields = json.loads(seeds["record"])
    fields["modules"][0] |= {"name": "a" * 5000, "tokens_a": 9}
    assert not judge(TARGETS["sealed record"], json.dumps(fields).encode())


def test_a_finding_is_one():
    def raises(_data):
        raise KeyError

    def takes_memory(_data):
        bytearray(512 << 20)

    for run in (raises, takes_memory):
        with pytest.raises((KeyError, Finding)):
            judge(Target(run=run, seeds=()), b"")


def test_changes_are_the_same_every_time_and_json_stays_json(seeds):
    one, other = mutate_json(seeds["config"], 7), mutate_json(seeds["config"], 7)
    assert one == other != seeds["config"]
    assert sum(_parses(mutate_json(seeds["config"], number)) for number in range(100)) > 80


def _parses(data):
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
