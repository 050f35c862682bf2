"""index.parquet: a row a sample, read back strictly."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_shards import DamageError
from llgbm_shards.index import decode_index, encode_index, index_schema

FIELDS = ("body", "scales", "json")


def rows(count):
    columns = {name: [] for name in index_schema(FIELDS).names}
    for number in range(count):
        for name, values in columns.items():
            kind = index_schema(FIELDS).field(name).type
            if kind == pa.string():
                values.append(f"{name}-{number}")
            elif kind == pa.binary(32):
                values.append(bytes([number]) * 32)
            elif kind == pa.bool_():
                values.append(number % 2 == 0)
            elif kind == pa.float64():
                values.append(number / 3)
            else:
                values.append(2**63 + number if kind == pa.uint64() else number)
    return columns


@pytest.mark.parametrize("count", [0, 1, 5])
def test_rows_come_back_in_order(count):
    given_rows = rows(count)
    table = decode_index(encode_index(given_rows, FIELDS), FIELDS)
    assert table.to_pydict() == given_rows
    assert [field.nullable for field in table.schema] == [False] * len(table.schema)


def test_equal_rows_make_equal_bytes_and_some_columns_can_be_read_alone():
    data = encode_index(rows(3), FIELDS)
    assert data == encode_index(rows(3), FIELDS)
    assert decode_index(data, FIELDS, columns=["task"]).to_pydict() == {
        "task": ["task-0", "task-1", "task-2"]
    }


def test_index_of_other_members_is_refused():
    with pytest.raises(DamageError, match="wrong columns"):
        decode_index(encode_index(rows(2), FIELDS), ("body", "json"))


def test_nulls_are_refused():
    nullable = pa.schema([field.with_nullable(True) for field in index_schema(FIELDS)])
    table = pa.table({**rows(2), "key": ["a", None]}, schema=nullable)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False)
    with pytest.raises(DamageError):
        decode_index(sink.getvalue().to_pybytes(), FIELDS, columns=["key"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_indices_are_read_or_refused_as_damage(data):
    raw = bytearray(encode_index(rows(3), FIELDS))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        table = decode_index(bytes(raw), FIELDS, columns=["key", "offset"])
    except DamageError:
        return
    assert table.num_columns == 2


def test_arbitrary_bytes_are_not_an_index():
    for data in (b"", b"PAR1", b"PAR1" * 3, os.urandom(4096)):
        with pytest.raises(DamageError, match="cannot be read as parquet"):
            decode_index(data, FIELDS)
