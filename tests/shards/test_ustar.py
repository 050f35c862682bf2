"""The canonical tar profile: what is written, what is read, and that nothing else is accepted."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_shards import DamageError, UsageError, ustar

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=99)
CONTENT = st.lists(st.tuples(NAMES, st.binary(max_size=1600)), max_size=6)


def tar(content):
    parts = [
        part
        for name, data in content
        for part in (ustar.header(name, len(data)), data, bytes(ustar.padding(len(data))))
    ]
    return b"".join([*parts, ustar.END])


def walk(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return list(ustar.members(fd, "x.tar"))
    finally:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(CONTENT)
def test_what_is_written_is_found_here_and_by_tarfile(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(tar(content))
    for name, data in content:
        info = tarfile.TarInfo.frombuf(ustar.header(name, len(data)), "ascii", "strict")
        assert (info.name, info.size, info.isreg(), info.mode, info.mtime) == (
            name,
            len(data),
            True,
            0o644,
            0,
        )
    found = walk(path)
    assert [(member.name, member.size) for member in found] == [(name, len(data)) for name, data in content]
    raw = path.read_bytes()
    assert [raw[m.data_offset : m.data_offset + m.size] for m in found] == [data for _, data in content]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_outside_the_data_is_refused(tmp_path_factory, data):
    content = [("a.json", b"12345"), ("b.npy", bytes(512)), ("c", b"")]
    raw = bytearray(tar(content))
    inside = {*range(512, 517), *range(1536, 2048)}
    byte = data.draw(st.sampled_from(sorted(set(range(len(raw))) - inside)))
    raw[byte] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(raw)
    with pytest.raises(DamageError):
        walk(path)


def test_every_truncation_and_every_appendix_is_refused(tmp_path):
    raw = tar([("a.json", b"12345"), ("b.npy", bytes(700))])
    path = tmp_path / "x.tar"
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(DamageError):
            walk(path)
    path.write_bytes(raw + bytes(512))
    with pytest.raises(DamageError, match="more bytes after it"):
        walk(path)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"\0"])
def test_other_member_types_are_damage(tmp_path, kind):
    info = tarfile.TarInfo("a.json")
    info.type = kind
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + ustar.END)
    with pytest.raises(DamageError, match="damaged tar header"):
        walk(path)


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_other_writers_are_refused(tmp_path, layout):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=layout) as archive:
        info = tarfile.TarInfo("a" * 120)
        archive.addfile(info)
    path = tmp_path / "x.tar"
    path.write_bytes(sink.getvalue())
    with pytest.raises(DamageError):
        walk(path)


@pytest.mark.parametrize("name", ["", "a" * 100, "é", "a\nb", "a\0b"])
def test_names_that_do_not_fit_are_refused(name):
    with pytest.raises(UsageError, match="member name does not fit"):
        ustar.header(name, 1)


def test_largest_member_fits_and_one_more_byte_does_not():
    assert ustar.parse(ustar.header("a", 8**11 - 1), 0, "x").size == 8**11 - 1
    with pytest.raises(UsageError, match="under 8 GiB"):
        ustar.header("a", 8**11)


def test_huge_declared_size_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(ustar.header("a.json", 8**11 - 1) + ustar.END)
    with pytest.raises(DamageError, match="truncated"):
        walk(path)


def test_the_profile_is_what_gnu_tar_writes_as_ustar(tmp_path):
    content = [("k.pieces.safetensors", bytes(1000)), ("k.json", b"{}\n")]
    for name, data in content:
        (tmp_path / name).write_bytes(data)
    options = [
        "--format=ustar",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
        "--mode=0644",
        "-b1",
    ]
    made = subprocess.run(
        ["tar", *options, "-C", tmp_path, "-cf", "-", *(name for name, _ in content)],
        capture_output=True,
        check=True,
    )
    assert made.stdout == tar(content)


def test_gnu_tar_lists_and_extracts_the_same_bytes(tmp_path):
    content = [("k.pieces.safetensors", os.urandom(1000)), ("k.json", b"{}\n")]
    path = tmp_path / "x.tar"
    path.write_bytes(tar(content))
    listed = subprocess.run(["tar", "tf", path], capture_output=True, check=True)
    assert listed.stdout.decode().split() == ["k.pieces.safetensors", "k.json"]
    assert listed.stderr == b""
    subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    for name, data in content:
        assert (tmp_path / name).read_bytes() == data
        assert oct((tmp_path / name).stat().st_mode & 0o777) == "0o644"
