"""Names that are not UTF-8, and terminals that are not: a clear line in each case, never a UnicodeEncodeError."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from llgbm_pack import PackOptions
from llgbm_shards import ShardSet, StorageError, UsageError
from support.commands import here, run
from support.tiny_zoo import write_adapter, write_deltas, write_zoo

pytestmark = pytest.mark.slow

#: Bytes of another encoding in a name, as Python gets them from the system.
FOREIGN = os.fsdecode(b"b\xff\x9bd")
FORMATS = pytest.mark.parametrize("form", ["text", "json"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A zoo with foreign names in it, a zoo and a set of foreign names, and ``key``, a sample's key."""
    root = tmp_path_factory.mktemp("names")
    paths = write_zoo(root / "zoo", 3)
    write_deltas(root / "deltas", paths)
    assert here("build", root / "zoo", root / "set", "-q", "--workers", 1).code == 0
    shutil.copytree(root / "set", root / FOREIGN)
    shutil.copytree(root / "zoo", root / f"zoo-{FOREIGN}")
    mixed = shutil.copytree(root / "zoo", root / "mixed")
    write_adapter(mixed / FOREIGN, 9)
    for name in (f"{FOREIGN}.safetensors", f"{FOREIGN}.bin", f"{paths[0]}/{FOREIGN}.txt"):
        (mixed / name).write_bytes(b"x")
    os.symlink(mixed / paths[0], mixed / f"link-{FOREIGN}")
    return root


def _said(*args, form, **options):
    """What a command says in a process of its own, without a traceback and as valid UTF-8."""
    done = run(*args, "--format", form, encoding="utf-8", errors="strict", **options)
    assert "Traceback" not in done.err
    if form == "json" and done.out:
        json.loads(done.out)
    return done


@FORMATS
def test_a_zoo_with_such_names_is_packed_and_they_are_listed(root, form):
    done = _said("build", root / "mixed", root / f"of-{form}", "-v", "--workers", 1, form=form)
    assert done.code == 1
    assert done.out.count("its name is not UTF-8") == 2
    against = _said("check", root / f"of-{form}", "--against", root / "mixed", "-v", form=form)
    assert against.code == 0


@FORMATS
def test_a_set_of_such_a_name_is_read(root, form, tmp_path):
    key = ShardSet(root / "set").keys[0]
    assert _said("check", root / FOREIGN, "--against", root / f"zoo-{FOREIGN}", form=form).code == 0
    assert _said("inspect", root / FOREIGN, form=form).code == 0
    assert _said("export", root / FOREIGN, tmp_path / FOREIGN, key, form=form).code == 0
    assert _said("export", root / FOREIGN, root / "mixed", key, form=form).code == 2
    assert _said("stats", root / FOREIGN, "-o", tmp_path / f"{FOREIGN}.safetensors", form=form).code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("inspect", "set", FOREIGN), "no such sample"),
        (("export", "set", "new", FOREIGN), "no such sample"),
        (("check", "set", "--expect-digest", FOREIGN), "not a digest"),
        (("bench", "set", "--device", FOREIGN), "not a device"),
        (("build", f"zoo-{FOREIGN}", "new"), "zoo: the path is not UTF-8"),
        (("build", "zoo", FOREIGN), "out: the path is not UTF-8"),
        (("build", "zoo", "new", "--include", FOREIGN), "include: not a sequence"),
        (("build", "zoo", "new", "--deltas", "deltas", "--map", f"{FOREIGN}=a"), "maps: not a sequence"),
        (("build", "zoo", "new", "--text-tokenizer", "x", "--joiner", FOREIGN), "joiner: cannot be used"),
        (("repair", FOREIGN, "--zoo", "zoo"), "out: the path is not UTF-8"),
    ],
    ids=lambda value: ascii(value)[:50] if isinstance(value, tuple) else None,
)
def test_such_an_argument_is_refused(root, args, said, monkeypatch):
    monkeypatch.chdir(root)
    done = here(*args)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    done.err.encode()


def test_messages_can_be_printed(root):
    with pytest.raises(StorageError) as absent:
        ShardSet(root / f"no-{FOREIGN}")
    with pytest.raises(UsageError) as other:
        ShardSet(root / FOREIGN, expect_digest="0" * 64)
    assert r"b\udcff\udc9bd" in str(absent.value).encode().decode()
    assert r"b\udcff\udc9bd" in str(other.value).encode().decode()


@FORMATS
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_lacks_a_character_gets_its_escape(root, form, encoding, tmp_path):
    zoo = shutil.copytree(root / "zoo", tmp_path / "zü→😀")
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = run(
        "check",
        root / "set",
        "--against",
        zoo,
        "--format",
        form,
        env=env,
        encoding=encoding,
        errors="surrogateescape",
    )
    assert done.code == 0
    if form == "json":
        # For ASCII, which is what a missing locale looks like, click writes UTF-8.
        text = done.out.encode(encoding, "surrogateescape").decode(
            "utf-8" if encoding == "ascii" else encoding
        )
        assert json.loads(text)["against"]["zoo"] == str(zoo)


def test_a_link_that_leads_to_itself_is_refused_as_any_path(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    options = PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "loop")
    assert options.content()["zoo"] == "zoo"
    (tmp_path / "zoo").mkdir()
    done = here("build", tmp_path / "zoo", tmp_path / "loop")
    assert done.code in (2, 3)
    assert "loop" in done.err
