"""Every command whose reads come short, or fail: short ones change nothing, failed ones are never called damage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading

import pytest

from faults.crash import can_trace
from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_pack import build
from llgbm_shards import ShardSet
from llgbm_shards.errors import CheckpointError, LlgbmError, StorageError
from support.commands import command, here
from support.faulty_reads import buffered_opens, faulty_reads
from support.tiny_zoo import tree, write_deltas, write_zoo
from support.unfinished import options

ERRORS = [errno.EIO, errno.ESTALE, errno.EAGAIN]
#: Words that would blame the bytes for what the system did.
BLAME = ("truncated", "damaged", "cut short", "missing", "wrong size", "not valid", "JSON", "replaced")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """zoo, deltas, prompts and the set of them, in two shards."""
    root = tmp_path_factory.mktemp("faulty")
    paths = write_zoo(root / "zoo", 5)
    write_deltas(root / "deltas", paths)
    (root / "zoo" / paths[0] / "prompts.json").write_text('["a prompt"]')
    build(options(root, root / "set", workers=1, shard_bytes=4096))
    return root


@pytest.fixture
def own(made, tmp_path):
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own"


def _key(root):
    return ShardSet(root / "set").keys[0]


COMMANDS = {
    "build": lambda root: (
        *("build", root / "zoo", root / "new", "--deltas", root / "deltas"),
        *("--shard-bytes", 4096, "--workers", 1),
    ),
    "check quick": lambda root: ("check", root / "set", "--level", "quick"),
    "check full": lambda root: ("check", root / "set"),
    "check deep": lambda root: ("check", root / "set", "--level", "deep"),
    "check against": lambda root: ("check", root / "set", "--against", root / "zoo"),
    "repair": lambda root: ("repair", root / "set", "--zoo", root / "zoo", "--deltas", root / "deltas"),
    "export": lambda root: ("export", root / "set", root / "adapter", _key(root)),
    "inspect": lambda root: ("inspect", root / "set"),
    "inspect sample": lambda root: ("inspect", root / "set", _key(root)),
    "stats": lambda root: ("stats", root / "set", "-o", root / "stats.safetensors"),
    "bench": lambda root: ("bench", root / "set", "--batch-size", 2),
}
READERS = {
    "loader": lambda root: [
        batch["keys"] for batch in StreamingLoader(root / "set", split=None, batch_size=1)
    ],
    "dataset": lambda root: [row["keys"] for row in ShardDataset(root / "set", split=None)],
    "sample": lambda root: ShardSet(root / "set").read_sample(0).key,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_short_reads_change_nothing(made, own, name, monkeypatch):
    if name == "repair":
        (own / "set/train-000000.tar").unlink()
    args = COMMANDS[name](own)
    with faulty_reads(monkeypatch, own, 0) as met, buffered_opens(own) as buffered:
        done = here(*args)
    assert (done.code, done.err if done.code else "") == (0, "")
    assert len(met) > 1
    assert not [path for path in buffered if "/.pack/" not in path], "read past the one opener"
    assert tree(own / "set") == tree(made / "set")
    if name == "build":
        assert tree(own / "new") == tree(made / "set")


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", COMMANDS)
def test_failed_reads_are_told_as_what_they_are(made, own, name, error, monkeypatch):
    args = COMMANDS[name](own)
    with faulty_reads(monkeypatch, own, error) as met:
        done = here(*args)
    assert met
    # Not one checkpoint could be packed: that is the build's refusal. All else could not do its work.
    assert done.code == (2 if name == "build" else 3), done
    told = done.out + done.err
    assert os.strerror(error) in told
    assert not [word for word in BLAME if word in told], told
    assert tree(own / "set") == tree(made / "set")


@pytest.mark.skipif(not can_trace(), reason="strace is missing or may not trace")
@pytest.mark.parametrize("name", ["build", "check deep"])
def test_reads_that_a_signal_interrupts_are_made_again(made, own, name, tmp_path):
    tampering = ["-e", "inject=pread64,preadv:error=EINTR:when=1+2", "-e", "trace=pread64,preadv"]
    log = tmp_path / "log"
    # The dynamic linker reads so too, and does not try again.
    files = [word for path in own.rglob("*") if path.is_file() for word in ("-P", path)]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", log, *files, *tampering, *command(*COMMANDS[name](own))],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(INJECTED)" in log.read_text()
    if name == "build":
        assert tree(own / "new") == tree(made / "set")


@pytest.mark.parametrize("name", READERS)
def test_readers_go_on_after_short_reads(made, name, monkeypatch):
    want = READERS[name](made)
    with faulty_reads(monkeypatch, made, 0) as met:
        assert READERS[name](made) == want
    assert met


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READERS)
def test_readers_raise_a_storage_error(made, name, error, monkeypatch):
    with faulty_reads(monkeypatch, made, error), pytest.raises(StorageError, match=os.strerror(error)):
        READERS[name](made)


def test_a_checkpoint_that_cannot_be_read_is_skipped_and_no_other(made, own, monkeypatch):
    one = own / "zoo" / sorted(path.name for path in (own / "zoo").iterdir())[0]
    bad = next(one.rglob("adapter_model.safetensors")).parent
    with faulty_reads(monkeypatch, bad, errno.EIO):
        done = here(*COMMANDS["build"](own), "--format", "json")
    assert done.code == 1
    assert [skip["reason"] for skip in done.json["skipped"]] == [
        reason
        for reason in (skip["reason"] for skip in done.json["skipped"])
        if "Input/output error" in reason
    ]
    assert len(done.json["skipped"]) == 1


@pytest.fixture
def fifo_put_there(monkeypatch):
    """Puts a FIFO in a file's place between the look at it and the opening, which must not wait for a writer."""

    def put(path):
        plain = os.open

        def late(name, *rest, **options):
            if str(name) == str(path) and not path.is_fifo():
                path.unlink()
                os.mkfifo(path)
            return plain(name, *rest, **options)

        monkeypatch.setattr(os, "open", late)

    return put


def _config(path):
    from llgbm_pack.sources.adapter_config import read_config

    return read_config(path)


def _head(path):
    from llgbm_shards.tensors import read_head

    return read_head(path)


def _delta(path):
    from llgbm_pack.deltas.file import load_delta

    return load_delta(path)


def _manifest(path):
    from llgbm_pack.deltas.manifest import read_manifest

    return read_manifest(path)


def _text(path):
    from llgbm_pack.sources.text_files import read_text_file

    return read_text_file(path)


def _source(path):
    from llgbm_pack.sources.weights_file import SourceReader

    return SourceReader().read(path)


@pytest.mark.parametrize("read", [_config, _head, _delta, _manifest, _text, _source])
def test_a_fifo_that_is_put_there_in_between_is_not_waited_for(tmp_path, read, fifo_put_there):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    fifo_put_there(path)
    result = []

    def run():
        try:
            read(path)
        except LlgbmError as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for a writer"
    assert "not a regular file" in str(result[0])


def test_a_file_that_cannot_be_read_makes_no_two_checkpoints_one(tmp_path, monkeypatch):
    from llgbm_pack.sources.zoo import _equal_files

    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    with faulty_reads(monkeypatch, tmp_path, errno.EAGAIN), pytest.raises(OSError, match="unavailable"):
        _equal_files(tmp_path / "a", tmp_path / "b")
    with faulty_reads(monkeypatch, tmp_path, 0):
        assert not _equal_files(tmp_path / "a", tmp_path / "b")


def test_a_checkpoint_error_is_what_a_reader_of_the_zoo_raises(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100))
    with faulty_reads(monkeypatch, tmp_path, errno.ESTALE):
        for read in (_config, _delta, _text, _source):
            with pytest.raises(CheckpointError, match=r"cannot be read.*Stale"):
                read(tmp_path / "file")
