"""A set from a stranger: refused by name, quickly, in 1 GiB, with nothing executed and nothing written."""

from __future__ import annotations

import os
import re
import shutil
import struct

import pytest

from hostile.hostile_records import RECORDS
from hostile.hostile_tars import TARS
from llgbm_shards import ShardSet
from llgbm_shards.names import RECORD_NAME
from support.edited_set import rewrite
from support.fork_server import MIB, fork_server
from support.synthetic import write_set
from support.traps import hole, npy, seen

pytestmark = pytest.mark.slow

MEMORY = 1024 * MIB
TIME_S = 60
SHARD = "train-000000.tar"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("logs"), "hostile.target") as server:
        yield server


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("hostile") / "set", 6, shard_samples=3).path


@pytest.fixture
def victim(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


def refused(server, call, victim, *said, codes=(1, 3)):
    """A check that names the fault: no traceback, no time, no memory, nothing written."""
    before = seen(victim.parent)
    ended = server.call(call, str(victim), memory=MEMORY, timeout_s=TIME_S)
    assert ended.code in codes, ended
    assert "Traceback" not in ended.err + ended.out, ended.err[-2000:]
    for words in said:
        assert re.search(words, ended.out + ended.err), (ended.out + ended.err)[-2000:]
    assert len(ended.out + ended.err) < 100_000
    assert seen(victim.parent) == before
    assert not os.path.lexists("evil")


def test_the_sound_set_passes_within_the_same_bounds(server, victim):
    ended = server.call("hostile.target:full", str(victim), memory=MEMORY, timeout_s=TIME_S)
    assert ended.code == 0, ended


@pytest.mark.parametrize("index", ["with its index", "without an index"])
@pytest.mark.parametrize("name", TARS)
def test_tars(server, victim, name, index):
    (victim / SHARD).unlink()
    TARS[name](victim / SHARD)
    if index == "without an index":
        (victim / "index.parquet").unlink()
    refused(server, "hostile.target:check", victim, SHARD)


@pytest.mark.parametrize("name", RECORDS)
def test_records_and_indexes(server, victim, name):
    RECORDS[name](victim)
    refused(server, "hostile.target:check", victim, rf"{re.escape(RECORD_NAME)}|index\.parquet|train-")


NPY = b"\x93NUMPY\x01\x00"
PICKLE = b"\x80\x04cos\nsystem\n(S'touch evil'\ntR."
OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (6,), }".ljust(117) + b"\n"
CODE = b"{'descr': __import__('os').system('touch evil'), 'shape': (6,)}".ljust(117) + b"\n"


MEMBERS = {
    "safetensors header of 2**63": ("pieces", lambda raw: struct.pack("<Q", 2**63) + raw[8:]),
    "safetensors header bomb": ("texts", lambda raw: struct.pack("<Q", 1 << 20) + b"[" * (1 << 20)),
    "safetensors header past its end": ("texts", lambda raw: struct.pack("<Q", len(raw)) + raw[8:]),
    "safetensors with trailing bytes": ("pieces", lambda raw: raw + b"more"),
    "texts with trailing bytes": ("texts", lambda raw: raw + b"more"),
    "safetensors of another dtype": ("pieces", lambda raw: raw.replace(b"BF16", b"BOOL")),
    "pickle for a body": ("pieces", lambda raw: PICKLE),
    "npy of objects": ("delta", lambda raw: npy(OBJECTS, PICKLE)),
    "npy header that is code": ("delta", lambda raw: npy(CODE)),
    "npy header bomb": ("delta", lambda raw: npy(b"(" * 60_000)),
    "npy with trailing bytes": ("scales", lambda raw: raw + b"more"),
    "npy of another dtype": ("scales", lambda raw: raw.replace(b"<f4", b"<i4")),
    "npy of another shape": ("scales", lambda raw: raw.replace(b"(6, 2)", b"(2, 6)")),
    "nested json": ("json", lambda raw: b"[" * 200_000),
    "json with a key twice": ("json", lambda raw: b'{"task":"a",' + raw[1:]),
    "json of closed brackets": ("json", lambda raw: b"[" + b"[]," * (20 * MIB) + b"[]]"),
    "json of numbers": ("json", lambda raw: b"[" + b"1," * (60 * MIB) + b"1]"),
    "json with a lone surrogate": ("json", lambda raw: raw.replace(b'"tiny"', b'"\\ud800"')),
    "empty member": ("pieces", lambda raw: b""),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_members(server, victim, name):
    """Every digest is right: only the values are wrong."""
    field, spoil = MEMBERS[name]
    first = []

    def edit(key, members):
        first.append(key)
        if key == first[0]:
            members[field] = spoil(members[field])
        return members

    rewrite(victim, edit, relist=field != "json")
    refused(server, "hostile.target:check", victim, rf"{SHARD}.*{first[0]}", codes=(1,))


def replaced(name, make):
    """Something else in the place of a file of the set."""

    def spoil(path):
        (path / name).unlink()
        make(path / name)

    return spoil


READ = {
    "named pipe for a shard": replaced(SHARD, os.mkfifo),
    "endless shard": replaced(SHARD, lambda path: path.symlink_to("/dev/zero")),
    "900 GiB for an index": replaced("index.parquet", hole),
    "900 GiB for a list": replaced("skipped.json", hole),
    **{name: spoil for name, spoil in RECORDS.items() if name.startswith("index")},
}
FOR_READING = 4096 * MIB  # address space: torch alone maps more than a GiB


@pytest.mark.parametrize("name", READ)
def test_what_reads_a_set_ends_as_soon_as_a_check(server, sound, victim, tmp_path, name):
    key = ShardSet(sound).keys[0]
    READ[name](victim)
    before = seen(victim)
    for args in (
        ["check", "--level", "quick", str(victim)],
        ["inspect", str(victim), key],
        ["export", str(victim), str(tmp_path / "exported"), key],
        ["stats", str(victim), "-o", str(tmp_path / "statistics")],
    ):
        ended = server.call("hostile.target:command", args, memory=FOR_READING, timeout_s=2 * TIME_S)
        assert "Traceback" not in ended.err + ended.out, (args, ended.err[-2000:])
        assert ended.code in (0, 1, 2, 3), (args, ended)
        assert len(ended.out + ended.err) < 10_000
        if (
            args[0] != "check"
        ):  # which here looks at no row; and nothing is read for the list of what was skipped
            assert (ended.code == 0) == (name == "900 GiB for a list"), (args, ended)
    assert seen(victim) == before
    assert not os.path.lexists("evil")
