"""Targets that read files of a set, and what else shards and loader parse."""

from __future__ import annotations

import json
import os
from functools import cache

from fuzz.places import put, scratch


def tar(data: bytes) -> None:
    from llgbm_shards import ustar

    fd = os.open(put(data, "x.tar"), os.O_RDONLY)
    try:
        for member in ustar.members(fd, "x.tar"):
            assert member.end <= len(data)
    finally:
        os.close(fd)


def recover(data: bytes) -> None:
    from llgbm_shards.recover import recover_samples

    fd = os.open(put(data, "x.tar"), os.O_RDONLY)
    try:
        found = recover_samples(fd, "x.tar")
    finally:
        os.close(fd)
    for extents in found.samples:
        assert all(extent.offset >= 0 and extent.offset + extent.size <= len(data) for extent in extents)


def safetensors(data: bytes) -> None:
    from llgbm_shards.tensors import decode_arrays, parse_header

    header = parse_header(data, len(data))
    assert all(0 <= spec.start <= spec.end <= len(data) for spec in header.tensors.values())
    decode_arrays(data, where="x")


def texts_member(data: bytes) -> None:
    from llgbm_shards.members import decode_texts
    from llgbm_shards.texts import RaggedTexts
    from support.synthetic import FORMS

    for ids, offsets in decode_texts(data, FORMS, where="x").values():
        texts = RaggedTexts.checked(ids, offsets, where="x")
        assert sum(texts[index].size for index in range(min(len(texts), 1000))) <= ids.size


def npy(data: bytes) -> None:
    from llgbm_shards.npy import decode_npy, parse_npy

    array = parse_npy(data, where="x")
    if array.dtype.str == "<f4":
        decode_npy(data, array.shape, where="x")


def strict_json(data: bytes) -> None:
    from llgbm_shards.canonical import dump_json, load_json

    value = load_json(data, where="x", max_bytes=1 << 20)
    again = dump_json(value)
    assert dump_json(load_json(again, where="x", max_bytes=1 << 24)) == again


def record(data: bytes) -> None:
    from llgbm_shards.record import parse_record

    assert parse_record(data).to_bytes() == data


def sealed_record(data: bytes) -> None:
    """A record whose own digest is right, whatever else it says."""
    from llgbm_shards.canonical import blake3_hex, dump_json, load_json

    fields = load_json(data, where="x", max_bytes=1 << 20)
    if isinstance(fields, dict):
        fields = {name: value for name, value in fields.items() if name != "digest"}
        record(dump_json({**fields, "digest": blake3_hex(dump_json(fields))}))


def index(data: bytes) -> None:
    _ask(data)
    from llgbm_shards.index import index_about
    from llgbm_shards.record import record_of

    record_of(index_about(data), (), ())


def index_rows(data: bytes) -> None:
    """A sound parquet file whose rows say anything."""
    import pyarrow as pa

    from llgbm_shards.canonical import load_json
    from llgbm_shards.index import encode_index

    rows = load_json(data, where="x", max_bytes=1 << 20)
    try:
        columns = {
            name: [bytes.fromhex(item) for item in column] if name.endswith(".blake3") else column
            for name, column in rows.items()
        }
        made = encode_index(columns, _set().record.members)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, KeyError, OverflowError):
        return  # No table can say that.
    _ask(made)


def _ask(data: bytes) -> None:
    """Everything that a set is asked of its index."""
    from llgbm_shards.index import refuse_many_rows
    from llgbm_shards.shardset import ShardSet

    opened = ShardSet(_set().path)
    refuse_many_rows(data, len(opened))
    opened.__dict__["_index_bytes"] = data
    opened.index()
    for number in range(len(opened)):
        for extent in opened.extents(number):
            assert 0 <= extent.offset <= extent.offset + extent.size <= opened.record.shards[0].size
    for entry in opened.record.shards:
        list(opened.shard_extents(entry.name))
    assert len(opened.keys) == len(opened)


def sample_json(data: bytes) -> None:
    _inspect("json", data)


def sample_arrays(data: bytes) -> None:
    """The first byte says which member; the others are the member."""
    _inspect(("scales", "texts", "delta", "pieces", "source")[data[0] % 5] if data else "scales", data[1:])


def _inspect(field: str, data: bytes) -> None:
    """The deep check of a sample one of whose members is the input, with a digest that is right."""
    from llgbm_shards.deep import DeepCheck
    from llgbm_shards.sample import decode_sample
    from llgbm_shards.shardset import ShardSet

    opened = _opened()
    assert isinstance(opened, ShardSet)
    extents, members = _sample()
    changed = {**members, field: data}
    list(DeepCheck(opened).inspect(extents, changed))
    decode_sample(extents[0].key, changed, opened.record)


@cache
def _set():
    from support.synthetic import write_set

    return write_set(scratch() / "set", 2)


@cache
def _opened():
    from llgbm_shards.shardset import ShardSet

    return ShardSet(_set().path)


@cache
def _sample():
    extents = _opened().extents(0)
    return extents, {extent.field: _opened().read_member(extent) for extent in extents}


def loader_state(data: bytes) -> None:
    from llgbm_loader.state import Identity, StreamState

    try:
        saved = json.loads(data)
    except (ValueError, RecursionError):
        return  # A user's own program reads it.
    identity = Identity(
        sets=("00" * 32,), overlays=("",), split="train", filters="", seed=0, shuffle=True, samples=12
    )
    StreamState(identity).load_json(saved)


def credentials(data: bytes) -> None:
    from llgbm_pack.cli.output import printable
    from llgbm_shards.public import without_credentials

    text = without_credentials(data.decode("utf-8", "surrogateescape"))
    printable(text)
    assert without_credentials(text) == text
