"""A zoo from a stranger: the build skips and names what it cannot trust, runs nothing, writes in OUT only."""

from __future__ import annotations

import json
import os
import re
import struct

import pytest

from support.fork_server import MIB, fork_server
from support.tiny_zoo import random_pairs, write_adapter, write_deltas, write_zoo

#: torch alone takes 800 MiB of address space, most of it never touched; what is left is for the work.
MEMORY = 1536 * MIB
TIME_S = 10
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLE = b"\x80\x04cos\nsystem\n(S'touch evil'\ntR."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("logs"), "hostile.pack_target") as server:
        yield server


@pytest.fixture
def zoo(tmp_path):
    write_deltas(tmp_path / "deltas", write_zoo(tmp_path / "zoo", 3))
    return tmp_path / "zoo"


def seen(directory):
    found = [path for path in sorted(directory.rglob("*")) if directory / "out" not in (path, *path.parents)]
    return [
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_mode) for path in found
    ]


def build(server, zoo, *more):
    """Build; whatever comes of it: no traceback, no time, no memory, nothing run, nothing written beside OUT."""
    root = zoo.parent
    before = seen(root)
    args = ["build", str(zoo), str(root / "out"), "--workers", "1", "-q", "--format", "json", *map(str, more)]
    ended = server.call("hostile.pack_target:command", args, memory=MEMORY, timeout_s=TIME_S)
    assert ended.code in (0, 1, 2, 3), ended
    assert "Traceback" not in ended.err + ended.out, ended.err[-2000:]
    changed = set(seen(root)) ^ set(before)
    assert {entry for entry in changed if entry[0] != str(root)} == set()
    assert not os.path.lexists("evil")
    assert not os.path.lexists(zoo / "evil")
    return ended


def skipped(server, zoo, name, said):
    ended = build(server, zoo)
    assert ended.code == 1, ended.err
    report = json.loads(ended.out)
    assert report["packed"] == 3
    (skip,) = [row for row in report["skipped"] if row["checkpoint"] == name]
    assert re.search(said, skip["reason"]), skip["reason"]
    assert len(skip["reason"]) < 2000


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


def hole(path, size=1 << 40):
    with path.open("wb") as file:
        file.truncate(size)


def huge_tensor(path):
    """Sound but for its size: one module of 2**40 values, in a file that is a hole."""
    rows, end = {}, 0
    for key, tensor in random_pairs(0).items():
        shape = [tensor.shape[0], 1 << 36] if "lora_A" in key else list(tensor.shape)
        size = 2 * shape[0] * shape[1]
        rows[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = header(json.dumps(rows).encode())
    path.write_bytes(head)
    os.truncate(path, len(head) + end)


def _replaced(make):
    def spoil(path):
        path.unlink()
        make(path)

    return spoil


ROW = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
OVERFLOW = b"4294967296,4294967296,4294967297"
WEIGHT_FILES = {
    "header of 2**63": lambda p: p.write_bytes(struct.pack("<Q", 2**63) + p.read_bytes()[8:]),
    "header of 1 TiB": lambda p: (p.write_bytes(struct.pack("<Q", 1 << 39)), os.truncate(p, 1 << 40)),
    "header nested": lambda p: p.write_bytes(header(b"[" * 1_000_000)),
    "header of nothing but brackets": lambda p: p.write_bytes(header(b"[" + b"[]," * 300_000 + b"[]]")),
    "header with a key twice": lambda p: p.write_bytes(header(b'{"a":' + ROW + b',"a":' + ROW + b"}", bytes(4))),
    "shape that overflows": lambda p: p.write_bytes(header(b'{"a":' + ROW.replace(b"[1]", b"[%s]" % OVERFLOW) + b"}", bytes(4))),
    "trailing bytes": lambda p: p.write_bytes(p.read_bytes() + b"more"),
    "another dtype": lambda p: p.write_bytes(p.read_bytes().replace(b"BF16", b"I16 ")),
    "1 TiB of nothing": hole,
    "1 TiB of tensor": huge_tensor,
    "pickle": lambda p: p.write_bytes(PICKLE),
    "zip of pickles": lambda p: p.write_bytes(b"PK\x03\x04" + PICKLE * 40),
    "named pipe": _replaced(os.mkfifo),
    "endless device": _replaced(lambda p: p.symlink_to("/dev/zero")),
    "link out of the zoo": _replaced(lambda p: p.symlink_to("/etc/passwd")),
    "link to itself": _replaced(lambda p: p.symlink_to(p)),
    "directory": _replaced(lambda p: p.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_weights(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    WEIGHT_FILES[name](bad / WEIGHTS)
    skipped(server, zoo, "beta/bad", r"adapter_model|fifo|FIFO|device|link|directory|module|layout|q_proj")


CONFIGS = {
    "nested": b"[" * 200_000,
    "a key twice": b'{"r":4,"r":4,"peft_type":"LORA"}',
    "nothing but brackets": b"[" + b"[]," * 300_000 + b"[]]",
    "rank of 10**300": b'{"peft_type":"LORA","r":1' + b"0" * 300 + b"}",
    "a pattern that never ends": b'{"peft_type":"LORA","r":4,"lora_alpha":8,"rank_pattern":{"((a+)+)+$":4}}',
    "NaN": b'{"peft_type":"LORA","r":4,"lora_alpha":NaN}',
    "pickle": PICKLE,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    (bad / CONFIG).write_bytes(CONFIGS[name])
    skipped(server, zoo, "beta/bad", r"adapter_config\.json")


TEXTS = {
    "nested": lambda p: p.write_bytes(b"[" * 200_000),
    "closed brackets": lambda p: p.write_bytes(b"[" + b"[]," * (20 * MIB) + b"[]]"),
    "numbers": lambda p: p.write_bytes(b"[" + b"1," * (30 * MIB) + b"1]"),
    "a key twice": lambda p: p.write_bytes(b'{"prompts":["a"],"prompts":["b"]}'),
    "1 TiB of nothing": hole,
    "named pipe": _replaced(os.mkfifo),
    "endless device": _replaced(lambda p: p.symlink_to("/dev/zero")),
    "directory": _replaced(lambda p: p.mkdir()),
    "pickle": lambda p: p.write_bytes(PICKLE),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    TEXTS[name](bad / "prompts.json")
    skipped(server, zoo, "beta/bad", r"prompts\.json")


MANIFESTS = {
    "nested": lambda p: p.write_bytes(b"[" * 200_000),
    "closed brackets": lambda p: p.write_bytes(b"[" + b"[]," * (20 * MIB) + b"[]]"),
    "1 TiB of nothing": hole,
    "named pipe": os.mkfifo,
    "endless device": lambda p: p.symlink_to("/dev/zero"),
    "pickle": lambda p: p.write_bytes(PICKLE),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_the_zoo(server, zoo, name):
    MANIFESTS[name](zoo / "manifest.json")
    ended = build(server, zoo)
    assert ended.code in (2, 3), ended
    assert "manifest.json" in ended.err


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_the_deltas(server, zoo, name):
    manifest = zoo.parent / "deltas/manifest.json"
    manifest.unlink()
    MANIFESTS[name](manifest)
    ended = build(server, zoo, "--deltas", zoo.parent / "deltas")
    assert ended.code in (2, 3)
    assert re.search(r"manifest\.json|deltas", ended.err), ended


def npy(text, data=b"", version=b"\x01\x00"):
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def shaped(text, data=bytes(96)):
    return npy(b"{'descr': %s, 'fortran_order': False, 'shape': %s, }\n" % text, data)


DELTAS = {
    "objects": shaped((b"'|O'", b"(24,)"), PICKLE),
    "pickle": PICKLE,
    "header that is code": npy(b"{'descr': __import__('os').system('touch evil'), 'shape': (24,)}\n"),
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "nested header": npy(b"(" * 60_000),
    "shape of 2**60": shaped((b"'<f4'", b"(1152921504606846976,)")),
    "shape that overflows": shaped((b"'<f4'", b"(4294967296, 4294967296)")),
    "negative shape": shaped((b"'<f4'", b"(-24,)")),
    "trailing bytes": shaped((b"'<f4'", b"(24,)"), bytes(97)),
    "record dtype": shaped((b"[('a', '<f4')]", b"(24,)")),
    "shape that never ends": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24, }\n", bytes(96)),
    "header that never ends": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24,), \n", bytes(96)),
    "string that never ends": npy(b"{'descr': '<f4", bytes(96)),
    "version 4": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24,), }\n", bytes(96), b"\x04\x00"),
}


@pytest.mark.parametrize("name", [*DELTAS, "named pipe", "endless device", "1 TiB of nothing"])
def test_deltas(server, zoo, name):
    deltas = zoo.parent / "deltas"
    entries = json.loads((deltas / "manifest.json").read_text())["adapters"]
    (key,) = [key for key, info in entries.items() if info["path"] == "zoo/alpha/run_000"]
    file = deltas / f"{key}.npy"
    file.unlink()
    if name in DELTAS:
        file.write_bytes(DELTAS[name])
    else:
        {**MANIFESTS}[name](file)
    ended = build(server, zoo, "--deltas", deltas)
    assert ended.code == 1, ended
    (skip,) = json.loads(ended.out)["skipped"]
    assert skip["checkpoint"] == "alpha/run_000"
    assert f"{key}.npy" in skip["reason"]


@pytest.mark.parametrize(
    "file", ["../../../../etc/passwd", "/etc/passwd", "pipe:touch evil", "http://localhost:1/x"]
)
def test_deltas_by_names_that_lead_out(server, zoo, file):
    deltas = zoo.parent / "deltas"
    (deltas / "manifest.json").write_text(
        json.dumps({"adapters": {file: {"path": "zoo/alpha/run_000", "norm": 1.0}}})
    )
    ended = build(server, zoo, "--deltas", deltas, "--missing-delta", "skip")
    assert ended.code in (1, 2), ended
    assert "root:" not in ended.out + ended.err


NAMES = [
    "pipe:touch evil",
    "{000..999}",
    "$(touch evil)",
    "a;touch evil",
    "-rf",
    "a\nb",
    "a\x1b[2Jb",
    "a\x00"[:1] + "\udcff",
]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_by_names_that_mean_something_elsewhere(server, zoo, name):
    """They are packed or named; they are never run, and they never move the cursor of a terminal."""
    write_adapter(zoo / "beta" / name, 9)
    (zoo / "beta" / name / "prompts.json").write_text("{")
    args = ["build", str(zoo), str(zoo.parent / "text"), "--workers", "1", "-q"]
    ended = server.call("hostile.pack_target:command", args, memory=MEMORY, timeout_s=TIME_S)
    assert "\x1b" not in ended.out + ended.err
    assert "Traceback" not in ended.err, ended.err[-500:]
    ended = build(server, zoo)
    assert ended.code == 1, ended
    assert json.loads(ended.out)["packed"] == 3
    for path in (zoo.parent / "out").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)


def test_a_zoo_of_links_to_itself_and_of_deep_folders(server, zoo):
    (zoo / "again").symlink_to(zoo)
    deep = zoo
    for _ in range(400):
        deep = deep / "d"
    deep.mkdir(parents=True)
    ended = build(server, zoo)
    assert ended.code in (0, 1), ended
    assert json.loads(ended.out)["packed"] == 3
