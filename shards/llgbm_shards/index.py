"""index.parquet: a row a sample, in sample-number order: offset, sizes, digests, and columns to query."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llgbm_shards.canonical import dump_json, load_json
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.members import MAX_KEY_LENGTH
from llgbm_shards.names import INDEX_NAME

_ROW_GROUP = 1 << 16
_ABOUT = "llgbm-shards"
_MAX_ABOUT_BYTES = 64 << 20


def index_schema(fields: Sequence[str]) -> pa.Schema:
    """Columns of the index of a set that has these member fields."""
    text = pa.string()
    columns = {"key": text, "split": text, "shard": text, "offset": pa.int64()}
    for field in fields:
        columns |= {
            f"{field}.size": pa.int64(),
            f"{field}.blake3": pa.binary(32),
            f"{field}.xxh3_64": pa.uint64(),
        }
    columns |= {"checkpoint": text, "task": text, "base_model": text}
    columns |= {"rank": pa.int32(), "has_delta": pa.bool_(), "delta_norm": pa.float64()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def index_columns(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Column name -> values, of rows whose digests may stand as hex."""
    columns: dict[str, list[Any]] = {name: [] for name in index_schema(fields).names}
    for row in rows:
        for name, values in columns.items():
            is_hex = name.endswith(".blake3") and isinstance(row[name], str)
            values.append(bytes.fromhex(row[name]) if is_hex else row[name])
    return columns


def encode_index(
    rows: Mapping[str, Sequence[Any]], fields: Sequence[str], about: Mapping[str, Any] | None = None
) -> bytes:
    """Parquet bytes of the index, equal for equal rows and equal pyarrow.

    Args:
        rows: Column name -> values, all of one length.
        fields: Member fields of the set, in member order.
        about: What the commit record says besides its lists of files: a copy, from which a lost record is restored.
    """
    table = pa.table(dict(rows), schema=index_schema(fields))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP)
        if about is not None:
            writer.add_key_value_metadata({_ABOUT: dump_json(dict(about)).decode()})
    return sink.getvalue()


@contextlib.contextmanager
def _parquet_errors(what: str = "cannot be read as parquet") -> Iterator[None]:
    """Turn what hostile bytes make the parsers raise into damage of the index."""
    try:
        yield
    # ValueError: nulls that the schema forbids, bad UTF-8 in a column or its name. KeyError: no such metadata.
    except (pa.ArrowException, OSError, ValueError, KeyError, HeaderError) as error:
        raise DamageError(what, shard=INDEX_NAME, got=str(error)) from error


def index_about(data: bytes) -> dict[str, Any]:
    """The copy of the commit record's fields that an index carries.

    Raises:
        DamageError: It is not readable, or carries none.
    """
    with _parquet_errors("carries no copy of the record's fields"):
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
        about: dict[str, Any] = load_json(
            metadata[_ABOUT.encode()], where=INDEX_NAME, max_bytes=_MAX_ABOUT_BYTES
        )
        if not isinstance(about, dict) or not isinstance(about.get("members"), list):
            raise HeaderError("not a commit record", where=INDEX_NAME)
    return about


def refuse_many_rows(data: bytes, samples: int) -> None:
    """Refuse an index with far more rows than samples before it is read: some KiB can hold millions of equal rows.

    Raises:
        DamageError: It has, or it is not a parquet file.
    """
    with _parquet_errors():
        rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    if rows > 2 * samples + _ROW_GROUP:
        what, expected = "index and record disagree", f"{samples} samples"
        raise DamageError(what, shard=INDEX_NAME, expected=expected, got=f"{rows} rows")


def decode_index(data: bytes, fields: Sequence[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """The index as an Arrow table, all columns or some.

    Raises:
        DamageError: Not a parquet file, or other columns than the set's fields call for.
    """
    schema = index_schema(fields)
    wanted = schema.names if columns is None else list(columns)
    with _parquet_errors():
        file = pq.ParquetFile(pa.BufferReader(data))
        if (names := file.schema_arrow.names) != schema.names:
            raise DamageError("wrong columns", shard=INDEX_NAME, expected=f"{schema.names}", got=f"{names}")
        # Without Arrow's threads: one that drops its last hold on these bytes while the interpreter ends aborts the process.
        table = file.read(columns=wanted, use_threads=False)
        table = table.cast(pa.schema([schema.field(name) for name in wanted]))
        table.validate(full=True)  # Neither read nor cast looks whether strings are UTF-8.
    for name in wanted:
        if table.column(name).null_count:
            raise DamageError("holds nulls", shard=INDEX_NAME, got=f"column {name}")
    if "key" in wanted:
        _refuse_long_keys(table.column("key"))
    return table


def _refuse_long_keys(keys: pa.ChunkedArray) -> None:
    """Some KiB of parquet can hold keys of many MiB, and keys are printed."""
    longest = pc.max(pc.binary_length(keys)).as_py() or 0
    if longest > MAX_KEY_LENGTH:
        expected = f"at most {MAX_KEY_LENGTH} bytes"
        raise DamageError("a key too long", shard=INDEX_NAME, expected=expected, got=f"{longest}")
