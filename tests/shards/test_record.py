"""The commit record: it proves itself, and a consistent but hostile one is refused as well."""

from __future__ import annotations

import copy
import json

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_shards import DamageError
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.record import parse_record, shard_digest
from support.synthetic import write_set


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    made = write_set(tmp_path_factory.mktemp("record") / "set", 4, shard_samples=2)
    return (made.path / "shardset.json").read_bytes()


def sealed(fields):
    """A record whose own digest is right."""
    fields = {name: value for name, value in fields.items() if name != "digest"}
    return dump_json({**fields, "digest": blake3_hex(dump_json(fields))})


def test_a_record_is_read_and_written_again_the_same(raw):
    record = parse_record(raw)
    assert record.to_bytes() == raw
    assert record.digest == json.loads(raw)["digest"]
    assert record.file("index.parquet").size > 0
    with pytest.raises(DamageError, match="does not list this file"):
        record.file("nothing")


def test_its_digest_is_that_of_its_other_fields(raw):
    fields = json.loads(raw)
    digest = fields.pop("digest")
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
    assert blake3(text.encode()).hexdigest() == digest


def test_shard_digest_is_that_of_its_lines():
    members = [("k.pieces.safetensors", 12, "ab" * 32), ("k.json", 3, "cd" * 32)]
    text = f"k.pieces.safetensors\t12\t{'ab' * 32}\nk.json\t3\t{'cd' * 32}\n"
    assert shard_digest(members) == blake3(text.encode()).hexdigest()


def test_every_form_but_the_canonical_one_is_refused(raw):
    fields = json.loads(raw)
    for other in (raw[:-1], raw + b"\n", json.dumps(fields).encode(), b"[]\n", b"{}\n", b""):
        with pytest.raises(DamageError):
            parse_record(other)


def test_another_format_is_named(raw):
    with pytest.raises(DamageError, match=r"unknown format: expected llgbm-shards/1, got 'llgbm-shards/2'"):
        parse_record(sealed({**json.loads(raw), "format": "llgbm-shards/2"}))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("shards", 0, "name"), "../../etc/passwd.tar"),
        (("shards", 0, "name"), "/tmp/train-000000.tar"),
        (("shards", 0, "name"), "pipe:rm -rf.tar"),
        (("shards", 0, "name"), "val-000000.tar"),
        (("shards", 0, "name"), "train-000001.tar"),
        (("shards", 0, "size"), -1),
        (("shards", 0, "size"), 1.5),
        (("shards", 0, "samples"), 0),
        (("shards", 0, "samples"), True),
        (("shards", 0, "samples"), 1 << 70),
        (("shards", 0, "digest"), "AB" * 32),
        (("shards", 0), []),
        (("files", 0, "name"), "../index.parquet"),
        (("files", 0, "name"), "/index.parquet"),
        (("files", 0, "name"), "a//b"),
        (("files", 0, "name"), "a\nb"),
        (("files", 1, "name"), "index.parquet"),
        (("rank",), 0),
        (("rank",), "2"),
        (("chunk",), 0),
        (("chunk",), None),
        (("dtype",), "float8"),
        (("dtype",), ["bfloat16"]),
        (("token_order",), "other"),
        (("modules", 0, "in"), 0),
        (("modules", 0, "tokens_a"), 99),
        (("modules", 1, "first_token"), 0),
        (("modules",), {}),
        (("members",), ["pieces"]),
        (("members",), ["json", "source", "delta", "texts", "scales", "pieces"]),
        (("members",), "pieces"),
        (("texts", "pad_id"), 1000),
        (("texts", "forms"), ["other"]),
        (("texts",), {}),
        (("delta_width",), 0),
        (("options",), None),
    ],
)
def test_a_consistent_record_with_an_impossible_field_is_refused(raw, place, value):
    fields = json.loads(raw)
    inner = fields
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(DamageError):
        parse_record(sealed(fields))


@pytest.mark.parametrize("change", ["drop", "add"])
def test_a_consistent_record_with_other_fields_is_refused(raw, change):
    for name in json.loads(raw):
        if name != "digest":
            fields = json.loads(raw)
            value = fields.pop(name) if change == "drop" else fields[name]
            if change == "add":
                fields[f"{name}_"] = value
            with pytest.raises(DamageError):
                parse_record(sealed(fields))


VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 2**80, 1.5, 1e300, "", "..", "a/../..", [], {}, [[]], {"a": []}]
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_sealed_record_says_it_is_read_or_refused_as_damage(raw, data):
    fields = json.loads(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        inner, keys = fields, []
        while isinstance(inner, dict | list) and len(inner) and (not keys or data.draw(st.booleans())):
            keys.append(
                data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            )
            outer, inner = inner, inner[keys[-1]]
        outer[keys[-1]] = copy.deepcopy(data.draw(VALUES))  # The next round may change its inside.
    try:
        record = parse_record(sealed(fields))
    except DamageError:
        return
    assert record.to_json().keys() | {"digest"} == fields.keys() | {"digest"}


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        (["texts", "delta", "json"], False),
        (["delta", "texts", "json"], True),
        (["pieces", "scales", "texts", "delta", "source", "json"], True),
        (["texts", "json"], True),
        (["json"], True),
    ],
    ids=str,
)
def test_members_of_an_overlay(raw, members, refused):
    fields = {**json.loads(raw), "base": "ab" * 32, "members": members}
    if refused:
        with pytest.raises(DamageError, match="members do not fit"):
            parse_record(sealed(fields))
    else:
        assert parse_record(sealed(fields)).base == "ab" * 32


def test_an_overlay_of_nothing_new(raw):
    fields = {
        **json.loads(raw),
        "base": "ab" * 32,
        "members": ["json"],
        "texts": {"forms": []},
        "delta_width": 0,
    }
    with pytest.raises(DamageError, match="members do not fit"):
        parse_record(sealed(fields))


@pytest.mark.parametrize("base", [None, 3, "ab", "AB" * 32, "../x"])
def test_a_base_is_a_digest_or_nothing(raw, base):
    with pytest.raises(DamageError, match="base"):
        parse_record(sealed({**json.loads(raw), "base": base}))
