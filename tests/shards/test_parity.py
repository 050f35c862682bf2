"""Parity against a slow reference: rows of any length, memory that is used again, records that come back."""

from __future__ import annotations

import os
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm_shards.canonical import blake3_hex
from llgbm_shards.errors import DamageError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.parity import ParityRows, is_whole, parity_blocks, recovered_record, write_parity
from llgbm_shards.record import FileEntry
from llgbm_shards.tensors import decode_arrays
from llgbm_shards.ustar import header, padded, padding

RECORDS = st.lists(st.lists(st.binary(max_size=40), max_size=3), min_size=1, max_size=9)


def slow_rows(records, groups):
    """Byte by byte."""
    longest = max(map(len, records))
    rows = []
    for group in range(groups):
        row = [0] * longest
        for record in records[group::groups]:
            row = [a ^ b for a, b in zip_longest(row, record, fillvalue=0)]
        rows.append(bytes(row))
    return rows


def saved(rows, path):
    entry = rows.save(path)
    data = path.read_bytes()
    assert (entry.size, entry.digest) == (len(data), blake3_hex(data))
    [(name, tensor)] = decode_arrays(data, where=path.name).items()
    assert name == "parity"
    return [row.tobytes() for row in tensor]


@given(shards=st.lists(RECORDS, min_size=1, max_size=3), groups=st.integers(1, 5))
def test_rows_are_the_xor_of_each_group(tmp_path_factory, shards, groups):
    path = tmp_path_factory.getbasetemp() / "train-000000.parity"
    rows = ParityRows(groups)
    for samples in shards:  # one after another in the same memory
        rows.begin()
        for parts in samples:
            rows.add(parts)
        records = [b"".join(parts) for parts in samples]
        assert saved(rows, path) == slow_rows(records, groups)


def made_shard(path, sizes):
    """A shard of samples of one member each, and their extents."""
    data, samples = b"", []
    for number, size in enumerate(sizes):
        body = bytes((number * 37 + i) % 251 for i in range(size))
        extent = MemberExtent(path.name, f"key{number}", "json", len(data) + 512, size, blake3_hex(body), 0)
        data += header(extent.name, size) + body + padding(size)
        assert len(data) == extent.offset + padded(size)
        samples.append([extent])
    path.write_bytes(data + bytes(1024))
    return data, samples


@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=7), groups=st.integers(1, 8), data=st.data())
def test_a_lost_record_comes_back(tmp_path_factory, sizes, groups, data):
    directory = tmp_path_factory.getbasetemp()
    shard, parity = directory / "train-000000.tar", directory / "train-000000.parity"
    whole, samples = made_shard(shard, sizes)
    rows = ParityRows(groups)
    for [extent] in samples:
        rows.add([whole[extent.offset - 512 : extent.end]])
    rows.save(parity)
    with shard.open("r+b") as file, parity.open("rb") as other:
        fd = file.fileno()
        assert b"".join(parity_blocks(fd, samples, groups)) == parity.read_bytes()
        number = data.draw(st.integers(0, len(sizes) - 1))
        [extent] = samples[number]
        os.pwrite(fd, b"\xff" * (extent.end - extent.offset + 512), extent.offset - 512)
        record = recovered_record(fd, other.fileno(), samples, groups, number)
        assert record == whole[extent.offset - 512 : extent.end]
        neighbour = number + groups
        if neighbour < len(sizes):  # Two of a group: neither comes back.
            os.pwrite(fd, b"\xff" * 512, samples[neighbour][0].offset - 512)
            assert recovered_record(fd, other.fileno(), samples, groups, number) is None


def test_any_flipped_bit_makes_a_record_not_whole(tmp_path):
    whole, samples = made_shard(tmp_path / "train-000000.tar", [300])
    assert is_whole(whole, samples[0])
    assert not is_whole(whole[:-1], samples[0])
    for place in range(len(whole)):
        assert not is_whole(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :], samples[0])


def test_another_parity_than_the_committed_one_is_not_put_in_place(tmp_path):
    path = tmp_path / "train-000000.parity"
    path.write_bytes(b"old")
    expected = FileEntry(name=path.name, size=3, digest=blake3_hex(b"abc"))
    with pytest.raises(DamageError, match="not the parity that was committed"):
        write_parity(path, iter([b"abd"]), 3, expected)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(path.name, b"old")]
    assert write_parity(path, iter([b"ab", b"c"]), 3, expected) == expected
