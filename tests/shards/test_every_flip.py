"""Every single-bit flip and every truncation of a tiny set is found, and the right sample and member are named."""

from __future__ import annotations

import functools
import os

import pytest

from llgbm_shards import ShardSet, check, shardset
from llgbm_shards.members import SUFFIX
from support.damage import cut, flipped, owners
from support.synthetic import small_layout, write_set

pytestmark = pytest.mark.slow

SHARD = "train-000000.tar"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two samples in one shard, 13 KB in all; without texts and deltas, whose members are judged like the others."""
    # The same index bytes are parsed a hundred thousand times: parse each once.
    cached = functools.lru_cache(maxsize=32)(
        lambda data, fields, columns: decode(data, fields, columns=columns)
    )
    decode = shardset.decode_index

    def decode_once(data, fields, *, columns=None):
        return cached(data, tuple(fields), None if columns is None else tuple(columns))

    monkeypatch.setattr(shardset, "decode_index", decode_once)
    made = write_set(
        tmp_path / "set",
        2,
        layout=small_layout(modules=1),
        tasks=("a",),
        shard_samples=2,
        texts=False,
        delta_width=0,
    )
    assert check(made.path).sound
    return made.path


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_the_shard_is_found_in_its_own_member(tiny, bit):
    path = tiny / SHARD
    table = owners(ShardSet(tiny), SHARD)
    for byte, (key, field) in enumerate(table):
        with flipped(path, 8 * byte + bit):
            report = check(tiny)
        found = [(finding.shard, finding.key, finding.member, finding.kind) for finding in report.findings]
        assert found == [(SHARD, key, SUFFIX.get(field, ""), "damage")], f"bit {bit} of byte {byte}"
        assert report.exit_code == 1
    assert check(tiny).sound


@pytest.mark.parametrize("name", ["index.parquet", "shardset.json", "skipped.json"])
def test_every_flipped_bit_of_the_other_files_is_found_there(tiny, name):
    path = tiny / name
    for bit in range(8 * path.stat().st_size):
        with flipped(path, bit):
            report = check(tiny)
        assert [(finding.shard, finding.key, finding.kind) for finding in report.findings] == [
            (name, "", "damage")
        ], f"bit {bit}"
    assert check(tiny).sound


def test_every_truncation_of_the_shard_names_exactly_the_members_it_reaches(tiny):
    path = tiny / SHARD
    table = owners(ShardSet(tiny), SHARD)
    for size in range(len(table) - 1, -1, -1):
        os.truncate(path, size)  # Shorter and shorter: nothing has to be put back.
        report = check(tiny)
        lost = {(key, SUFFIX[field]) for key, field in table[size:] if field}
        named = {(finding.key, finding.member) for finding in report.findings if finding.key}
        assert named == lost, f"cut to {size} bytes"
        assert f"wrong size: expected {len(table)} bytes, got {size}" in {f.what for f in report.findings}
        assert report.exit_code == 1


@pytest.mark.parametrize("name", ["index.parquet", "shardset.json", "skipped.json"])
def test_every_truncation_of_the_other_files_is_found_there(tiny, name):
    for size in range((tiny / name).stat().st_size):
        with cut(tiny / name, size):
            report = check(tiny)
        assert [(finding.shard, finding.kind) for finding in report.findings] == [(name, "damage")]
