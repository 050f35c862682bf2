"""A zoo from a stranger: the build skips and names what it cannot trust, runs nothing, writes in OUT only."""

from __future__ import annotations

import json
import os
import re
import struct

import pytest

from support.fork_server import MIB, fork_server
from support.tiny_zoo import random_pairs, write_adapter, write_deltas, write_zoo
from support.traps import hole, npy, seen

pytestmark = pytest.mark.slow

#: torch alone takes 800 MiB of address space, most of it never touched; what is left is for the work.
MEMORY = 1536 * MIB
TIME_S = 60
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


def build(server, zoo, *more):
    """Build; whatever comes of it: no traceback, no time, no memory, nothing run, nothing written beside OUT."""
    root = zoo.parent
    before = seen(root, without="out")
    args = ["build", str(zoo), str(root / "out"), "--workers", "1", "-q", "--format", "json", *map(str, more)]
    ended = server.call("hostile.pack_target:command", args, memory=MEMORY, timeout_s=TIME_S)
    assert ended.code in (0, 1, 2, 3), ended
    assert "Traceback" not in ended.err + ended.out, ended.err[-2000:]
    changed = set(seen(root, without="out")) ^ set(before)
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


def spoilt(data):
    return lambda path: path.write_bytes(data)


def _replaced(make):
    def spoil(path):
        path.unlink()
        make(path)

    return spoil


ROW = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
OVERFLOW = b"4294967296,4294967296,4294967297"
WEIGHT_FILES = {
    "header of 2**63": (
        lambda p: p.write_bytes(struct.pack("<Q", 2**63) + p.read_bytes()[8:]),
        "header too long: .* got 9223372036854775808",
    ),
    "header of 1 TiB": (
        lambda p: (p.write_bytes(struct.pack("<Q", 1 << 39)), os.truncate(p, 1 << 40)),
        "header too long: .* got 549755813888",
    ),
    "header nested": (spoilt(header(b"[" * 1_000_000)), "nested too deeply"),
    "header of nothing but brackets": (
        lambda p: p.write_bytes(header(b"[" + b"[]," * 300_000 + b"[]]")),
        "header is not an object",
    ),
    "header with a key twice": (
        lambda p: p.write_bytes(header(b'{"a":' + ROW + b',"a":' + ROW + b"}", bytes(4))),
        "duplicate key 'a'",
    ),
    "shape that overflows": (
        lambda p: p.write_bytes(header(b'{"a":' + ROW.replace(b"[1]", b"[%s]" % OVERFLOW) + b"}", bytes(4))),
        "a: extent does not fit dtype and shape",
    ),
    "trailing bytes": (lambda p: p.write_bytes(p.read_bytes() + b"more"), "trailing bytes after the data"),
    "another dtype": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"BF16", b"I16 ")),
        "lora_A.weight: unknown dtype: got 'I16 '",
    ),
    "1 TiB of nothing": (hole, "not valid JSON"),
    "1 TiB of tensor": (huge_tensor, r"does not fit the set: .*q_proj expected .* got \(68719476736, 48\)"),
    "pickle": (spoilt(PICKLE), "header too long"),
    "zip of pickles": (spoilt(b"PK\x03\x04" + PICKLE * 40), "header too long"),
    "named pipe": (_replaced(os.mkfifo), "adapter_model.safetensors is a FIFO"),
    "endless device": (
        _replaced(lambda p: p.symlink_to("/dev/zero")),
        "adapter_model.safetensors is a link out of the zoo",
    ),
    "link out of the zoo": (
        _replaced(lambda p: p.symlink_to("/etc/passwd")),
        "adapter_model.safetensors is a link out of the zoo",
    ),
    "link to itself": (_replaced(lambda p: p.symlink_to(p)), "adapter_model.safetensors is a broken link"),
    "directory": (_replaced(lambda p: p.mkdir()), "adapter_config.json without adapter_model.safetensors"),
}


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_weights(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    spoil, said = WEIGHT_FILES[name]
    spoil(bad / WEIGHTS)
    skipped(server, zoo, "beta/bad", said)


CONFIGS = {
    "nested": (b"[" * 200_000, "^adapter_config.json: nested too deeply"),
    "a key twice": (
        b'{"r":4,"r":4,"peft_type":"LORA"}',
        "^adapter_config.json: not valid JSON: got duplicate key 'r'",
    ),
    "nothing but brackets": (
        b"[" + b"[]," * 300_000 + b"[]]",
        "^adapter_config.json: not an object: got list",
    ),
    "rank of 10**300": (
        b'{"peft_type":"LORA","lora_alpha":8,"r":1' + b"0" * 300 + b"}",
        r"lora_A\.weight: rank of the tensor is not .* got 4",
    ),
    "a pattern that never ends": (
        b'{"peft_type":"LORA","r":4,"lora_alpha":8,"rank_pattern":{"((a+)+)+$":4}}',
        "^adapter_config.json: rank_pattern: pattern too complex",
    ),
    "NaN": (
        b'{"peft_type":"LORA","r":4,"lora_alpha":NaN}',
        "^adapter_config.json: not valid JSON: got NaN is not JSON",
    ),
    "pickle": (PICKLE, "^adapter_config.json: not valid JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    content, said = CONFIGS[name]
    (bad / CONFIG).write_bytes(content)
    skipped(server, zoo, "beta/bad", said)


TEXTS = {
    "nested": (spoilt(b"[" * 200_000), "nested too deeply"),
    "closed brackets": (lambda p: p.write_bytes(b"[" + b"[]," * (20 * MIB) + b"[]]"), "too many values"),
    "numbers": (lambda p: p.write_bytes(b"[" + b"1," * (30 * MIB) + b"1]"), "too many values"),
    "a key twice": (lambda p: p.write_bytes(b'{"prompts":["a"],"prompts":["b"]}'), "duplicate key 'prompts'"),
    "1 TiB of nothing": (hole, "too large"),
    "named pipe": (_replaced(os.mkfifo), "is a FIFO"),
    "endless device": (_replaced(lambda p: p.symlink_to("/dev/zero")), "is a link out of the zoo"),
    "directory": (_replaced(lambda p: p.mkdir()), "is a directory"),
    "pickle": (spoilt(PICKLE), "not valid JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(server, zoo, name):
    bad = write_adapter(zoo / "beta/bad", 9)
    spoil, said = TEXTS[name]
    spoil(bad / "prompts.json")
    skipped(server, zoo, "beta/bad", rf"^prompts\.json: .*{said}")


#: Name -> what is done, what is said of a zoo's manifest, what of a delta cache's.
MANIFESTS = {
    "nested": (spoilt(b"[" * 200_000), "nested too deeply", "nested too deeply"),
    "closed brackets": (
        lambda p: p.write_bytes(b"[" + b"[]," * (20 * MIB) + b"[]]"),
        "too many values",
        "too many values",
    ),
    "1 TiB of nothing": (hole, "too large", "too large"),
    "named pipe": (os.mkfifo, "is a FIFO", "no delta cache: expected manifest.json"),
    "endless device": (
        lambda p: p.symlink_to("/dev/zero"),
        "is a link out of the zoo",
        "no delta cache: expected manifest.json",
    ),
    "pickle": (spoilt(PICKLE), "not valid JSON", "not valid JSON"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_the_zoo(server, zoo, name):
    spoil, said, _ = MANIFESTS[name]
    spoil(zoo / "manifest.json")
    ended = build(server, zoo)
    assert ended.code == (3 if name == "1 TiB of nothing" else 2), ended
    assert re.search(rf"manifest\.json.*{said}", ended.err), ended.err


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_the_deltas(server, zoo, name):
    manifest = zoo.parent / "deltas/manifest.json"
    manifest.unlink()
    spoil, _, said = MANIFESTS[name]
    spoil(manifest)
    ended = build(server, zoo, "--deltas", manifest.parent)
    assert ended.code == 2, ended
    assert re.search(rf"deltas(/manifest\.json)?: {said}", ended.err), ended.err


def shaped(text, data=bytes(96)):
    return npy(b"{'descr': %s, 'fortran_order': False, 'shape': %s, }\n" % text, data)


DELTAS = {
    "objects": (spoilt(shaped((b"'|O'", b"(24,)"), PICKLE)), r"array of another dtype: .* got \|O"),
    "pickle": (spoilt(PICKLE), "not an npy array: expected version"),
    "header that is code": (
        spoilt(npy(b"{'descr': __import__('os').system('touch evil'), 'shape': (24,)}\n")),
        "expected numpy's own header",
    ),
    "header of 4 GiB": (
        spoilt(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100)),
        "expected a header of at most 100 bytes",
    ),
    "nested header": (spoilt(npy(b"(" * 60_000)), "expected a header of at most 4096 bytes"),
    "shape of 2**60": (
        spoilt(shaped((b"'<f4'", b"(1152921504606846976,)"))),
        "cut short or too long: expected 4611686018427387904, got 96 bytes",
    ),
    "shape that overflows": (spoilt(shaped((b"'<f4'", b"(4294967296, 4294967296)"))), "impossible shape"),
    "negative shape": (spoilt(shaped((b"'<f4'", b"(-24,)"))), "expected numpy's own header"),
    "trailing bytes": (
        spoilt(shaped((b"'<f4'", b"(24,)"), bytes(97))),
        "cut short or too long: expected 96, got 97 bytes",
    ),
    "record dtype": (spoilt(shaped((b"[('a', '<f4')]", b"(24,)"))), "expected numpy's own header"),
    "shape that never ends": (
        spoilt(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24, }\n", bytes(96))),
        "expected numpy's own header",
    ),
    "header that never ends": (
        spoilt(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24,), \n", bytes(96))),
        "expected numpy's own header",
    ),
    "string that never ends": (spoilt(npy(b"{'descr': '<f4", bytes(96))), "expected numpy's own header"),
    "version 4": (
        spoilt(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24,), }\n", bytes(96), 4)),
        "not an npy array: expected version",
    ),
    "named pipe": (_replaced(os.mkfifo), "the delta is not a regular file"),
    "endless device": (_replaced(lambda p: p.symlink_to("/dev/zero")), "the delta is not a regular file"),
    "1 TiB of nothing": (hole, "too large for a delta"),
}


@pytest.mark.parametrize("name", DELTAS)
def test_deltas(server, zoo, name):
    deltas = zoo.parent / "deltas"
    entries = json.loads((deltas / "manifest.json").read_text())["adapters"]
    (key,) = [key for key, info in entries.items() if info["path"] == "zoo/alpha/run_000"]
    spoil, said = DELTAS[name]
    spoil(deltas / f"{key}.npy")
    ended = build(server, zoo, "--deltas", deltas)
    assert ended.code == 1, ended
    (skip,) = json.loads(ended.out)["skipped"]
    assert skip["checkpoint"] == "alpha/run_000"
    assert re.match(rf"{key}\.npy: .*{said}", skip["reason"]), skip["reason"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("../../../../etc/passwd", "names a file outside its cache"),
        ("/etc/passwd", "no delta belongs to any checkpoint"),
        ("pipe:touch evil", "no delta belongs to any checkpoint"),
        ("http://localhost:1/x", "no delta belongs to any checkpoint"),
    ],
)
def test_deltas_by_names_that_lead_out(server, zoo, file, said):
    deltas = zoo.parent / "deltas"
    (deltas / "manifest.json").write_text(
        json.dumps({"adapters": {file: {"path": "zoo/alpha/run_000", "norm": 1.0}}})
    )
    ended = build(server, zoo, "--deltas", deltas, "--missing-delta", "skip")
    assert ended.code == 2, ended
    assert said in ended.err
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
