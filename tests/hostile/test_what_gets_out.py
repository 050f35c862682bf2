"""What a set and a message give away: no credentials of URLs, and modes as the umask says."""

from __future__ import annotations

import json
import os
import stat

import pytest

from llgbm_shards.errors import UsageError
from llgbm_shards.public import without_credentials
from support.commands import here
from support.tiny_zoo import tree, write_adapter, write_deltas, write_zoo

SECRET = "hf_5ecret"
URLS = [
    f"https://me:{SECRET}@hub.example/org/model",
    f"https://{SECRET}@hub.example/model",
    f"s3://b/model?sig={SECRET}",
]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pw@host/a/b", "https://host/a/b"),
        ("https://token@host", "https://host"),
        ("see s3://bucket/key?X-Amz-Signature=abc&x=1 now", "see s3://bucket/key now"),
        ("'https://h/a#token' is no name", "'https://h/a' is no name"),
        ("git+ssh://git:pw@host:22/x.git and http://a:b@c/", "git+ssh://host:22/x.git and http://c/"),
        ("https://a:p@ss@host/x", "https://host/x"),
        ("me@example.org, a://b, no?url#here", "me@example.org, a://b, no?url#here"),
        ("C:\\zoo\\a@b", "C:\\zoo\\a@b"),
    ],
)
def test_urls_without_their_secrets(text, clean):
    assert without_credentials(text) == clean


def test_no_message_of_an_error_tells_them():
    error = UsageError(
        f"no such place: {URLS[0]}", where=URLS[1], expected=URLS[2], got=URLS[0], do=f"Try {URLS[1]}."
    )
    assert SECRET not in str(error)
    assert "hub.example/org/model" in str(error)


@pytest.mark.parametrize("url", URLS)
def test_no_file_of_a_set_and_no_output_tells_them(tmp_path, url):
    paths = write_zoo(tmp_path / "zoo", 2)
    for path in paths:
        file = tmp_path / "zoo" / path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": url}))
    manifest = write_deltas(tmp_path / "deltas", paths) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "base_model": url, "probes": url}))
    broken = write_adapter(tmp_path / "zoo/broken", 3) / "adapter_config.json"
    broken.write_text(json.dumps({"peft_type": url}))
    done = here("build", tmp_path / "zoo", tmp_path / "out", "--deltas", tmp_path / "deltas", "--workers", 1,
                "--missing-delta", "skip")  # fmt: skip
    assert done.code == 1, done.err
    told = [here("inspect", tmp_path / "out"), here("stats", tmp_path / "out", "-o", tmp_path / "stats")]
    for text in [done.out, done.err, *(part for one in told for part in (one.out, one.err))]:
        assert SECRET not in text
    for name, data in tree(tmp_path / "out").items():
        assert SECRET.encode() not in data, name
    assert SECRET.encode() not in (tmp_path / "stats").read_bytes()


@pytest.mark.parametrize("url", URLS)
def test_no_refusal_tells_them(tmp_path, monkeypatch, url):
    write_zoo(tmp_path / "zoo", 1)
    monkeypatch.chdir(tmp_path)
    for args in (
        ["build", tmp_path / "zoo", url],
        ["build", url, tmp_path / "out"],
        ["check", url],
        ["inspect", url],
        ["repair", url, "--zoo", tmp_path / "zoo"],
        ["build", tmp_path / "zoo", tmp_path / "out", "--deltas", url],
    ):
        done = here(*args)
        assert done.code in (2, 3)
        assert SECRET not in done.out + done.err
    # Nor does one become a folder here.
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_are_what_the_umask_leaves(tmp_path, umask):
    write_zoo(tmp_path / "zoo", 2)
    before = os.umask(umask)
    try:
        assert here("build", tmp_path / "zoo", tmp_path / "out", "--workers", 1, "-q").code == 0
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path
