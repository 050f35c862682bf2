"""Row filters on index columns: pyarrow's disjunctive normal form, ``[("task", "in", ["arc_e"])]``.

A value is a bool, a number or a text, and for ``in`` and ``not in`` a list, tuple, set or range of these. Scalars and
arrays of numpy, pyarrow, pandas and torch count as what they hold. Nothing else: a saved state carries the filters as
JSON, and columns of the index hold nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from llgbm_loader.options import Filters
from llgbm_shards.errors import UsageError

_OF_LISTS: Final = ("in", "not in")


def filter_columns(filters: Filters) -> list[str]:
    """Names of the columns that the filters speak of.

    Raises:
        UsageError: Not a list of (column, operator, value), nor a list of such lists; or a value of another kind.
    """
    return list(dict.fromkeys(name for group in _groups(filters) for name, _, _ in group))


def filter_rows(table: pa.Table, filters: Filters, names: Mapping[str, str]) -> pa.Table:
    """The rows that the filters let pass, in their order.

    Args:
        table: The rows.
        filters: Conditions on columns.
        names: Columns they may speak of, and what each is called in the table.

    Raises:
        UsageError: An unknown column or operator, or a value that does not compare with the column.
    """
    # Imported here: it costs 0.3 s that a run without filters need not pay.
    import pyarrow.parquet as pq  # noqa: PLC0415

    absent = [name for name in filter_columns(filters) if name not in names]
    if absent:
        raise UsageError(
            f"the index has no column {absent[0]!r}",
            where="option filters",
            expected=", ".join(names),
        )
    try:
        named = [[(names[name], *rest) for name, *rest in group] for group in _groups(filters)]
        return table.filter(pq.filters_to_expression(named))
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise UsageError("not a filter on the index", where="option filters", got=str(error)) from error


def filter_text(filters: Filters | None) -> str:
    """One text for equal filters, for a saved state to compare."""
    return json.dumps(_groups(filters or []))


def _groups(filters: Filters) -> list[list[tuple[str, str, Any]]]:
    """The filters as a list of groups of clauses: clauses of a group hold together, groups are alternatives."""
    if not isinstance(filters, (list, tuple)):
        raise _refused(filters)
    flat = bool(filters) and all(_is_clause(item) for item in filters)
    return [_group(group) for group in ([filters] if flat else filters)]


def _group(group: Any) -> list[tuple[str, str, Any]]:
    if not (isinstance(group, (list, tuple)) and group and all(map(_is_clause, group))):
        raise _refused(group)
    return [
        (name, "==" if operator == "=" else operator, _plain(name, operator, value))
        for name, operator, value in group
    ]


def _is_clause(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 3 and all(isinstance(x, str) for x in item[:2])


def _refused(got: Any) -> UsageError:
    return UsageError(
        "not a list of filters",
        where="option filters",
        expected='(column, operator, value) each, e.g. [("task", "in", ["arc_e"])]',
        got=f"{got!r:.200}",
    )


def _plain(column: str, operator: str, value: Any) -> Any:
    """The value in Python's own types; values of ``in`` in sorted order."""
    of_lists, plain = operator in _OF_LISTS, _unwrapped(value)
    if of_lists and isinstance(plain, (list, tuple, set, frozenset, range)):
        plain = sorted(map(_unwrapped, plain), key=repr)
    if isinstance(plain, list) != of_lists or not all(map(_is_scalar, plain if of_lists else [plain])):
        kind = "a bool, a number or a text"
        raise UsageError(
            f"not a value for {operator!r}",
            where=f"option filters, column {column}",
            expected=f"a list, each {kind}" if of_lists else kind,
            got=f"{value!r:.200}",
        )
    return plain


def _unwrapped(value: Any) -> Any:
    for method in ("tolist", "to_pylist", "as_py"):  # numpy, torch and pandas; pyarrow's arrays; its scalars
        if hasattr(value, method):
            return getattr(value, method)()
    return value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))
