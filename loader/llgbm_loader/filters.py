"""Row filters on index columns: pyarrow's disjunctive normal form, ``[("task", "in", ["arc_e"])]``."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from llgbm_loader.options import Filters
from llgbm_shards.errors import UsageError


def filter_columns(filters: Filters) -> list[str]:
    """Names of the columns that the filters speak of.

    Raises:
        UsageError: Not a list of (column, operator, value), nor a list of such lists.
    """
    names = [clause[0] for group in _groups(filters) for clause in group]
    return list(dict.fromkeys(names))


def filter_rows(table: pa.Table, filters: Filters) -> pa.Table:
    """The rows that the filters let pass, in their order.

    Raises:
        UsageError: An unknown column or operator, or a value that does not compare with the column.
    """
    # Imported here: it costs 0.3 s that a run without filters need not pay.
    import pyarrow.parquet as pq  # noqa: PLC0415

    absent = [name for name in filter_columns(filters) if name not in table.column_names]
    if absent:
        raise UsageError(
            f"the index has no column {absent[0]!r}",
            where="option filters",
            expected=", ".join(table.column_names),
        )
    groups = [[tuple(clause) for clause in group] for group in _groups(filters)]
    try:
        return table.filter(pq.filters_to_expression(groups))
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise UsageError("not a filter on the index", where="option filters", got=str(error)) from error


def filter_text(filters: Filters | None) -> str:
    """One text for equal filters, for a saved state to compare: values of ``in`` in sorted order."""
    groups = [[[name, op, _plain(value)] for name, op, value in group] for group in _groups(filters or [])]
    return json.dumps(groups, default=str)


def _groups(filters: Filters) -> list[list[Any]]:
    """The filters as a list of groups of clauses: clauses of a group hold together, groups are alternatives."""
    flat = bool(filters) and all(_is_clause(item) for item in filters)
    groups = [list(filters)] if flat else [list(group) for group in filters]
    if not all(group and all(map(_is_clause, group)) for group in groups):
        raise UsageError(
            "not a list of filters",
            where="option filters",
            expected='(column, operator, value) each, e.g. [("task", "in", ["arc_e"])]',
            got=f"{filters!r:.200}",
        )
    return groups


def _is_clause(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 3 and all(isinstance(x, str) for x in item[:2])


def _plain(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, (list, tuple, set, frozenset)) else value
