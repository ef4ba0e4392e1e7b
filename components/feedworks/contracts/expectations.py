"""A contract as a Great Expectations suite.

The suite does not run on the table itself but on its *measured frame*: a pandas frame with the key columns
and times as they are and, in place of long text and vectors, a few numbers per row. So a table with vectors
of any width is validated in little memory. The measured columns of a table column `c` are:

* `c` for a number or a time: the value (minus infinity for NaN and infinity); for text or a vector: 1, or NaN
  where it is null;
* `c.width`, `c.num_bad` for a vector: how many numbers it has, and how many of them are null, NaN or infinite
  (NaN where there is no vector);
* `c.known` for a reference: whether the other table has the value;
* `c.place` for one of some words: its place among them, -1 for another word, NaN where it is null;
* `c.blank`, `c.num_bad` for prose: whether there is nothing to read, and how many characters are NUL or no
  UTF-8; `c.elsewhere`: whether a row before has the same text and another value of `apart_by`, `c.again`:
  whether one before has the same text and value, `c.shared`: the share of its long sentences that stand
  under another value, too. Texts that differ in their spaces alone are the same.

`in_order` is False for a row that should stand before its predecessor; a table in any order has none.

A table that is larger than a block is measured and validated block by block. What is expected of a column as
a whole is looked up in a frame of its distinct values (`column_suite`).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from feedworks.contracts.tables import Column, Table

IN_ORDER = "in_order"
# Of a text's sentences; more than that is another edition of a text, not what people quote.
MOST_SHARED = 0.5


def import_gx() -> Any:
    """Imports Great Expectations quietly: no telemetry, and its own deprecation warnings are not ours."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings(), _main_module_with_a_file():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations
        import great_expectations.expectations
    return great_expectations


@contextmanager
def _main_module_with_a_file() -> Iterator[None]:
    """Keep the process alive under `python -c`, where Great Expectations imports PySpark, if installed.

    PySpark 4 takes a main module without a file for a run of its doctests and ends it, with status 0.
    """
    main = sys.modules["__main__"]
    if hasattr(main, "__file__"):
        yield
        return
    main.__file__ = "-c"
    try:
        yield
    finally:
        del main.__file__


def suite(contract: Table, widths: Mapping[str, int], num_nulls: Mapping[str, int], num_rows: int) -> Any:
    """The `ExpectationSuite` for the measured frame of one table, or of a block of it: what holds row by row.

    Each expectation carries in `meta` the contract column it is about, a sentence `problem` that says what
    the unexpected rows are, and the `mend`. A breach of severity `critical` must stop a run, a `warning` not.

    Args:
        contract: The table.
        widths: For each vector column without `any_width`, the width that its vectors must have.
        num_nulls: Nulls in each nullable column of the table. One that is null in every row is not used and
            passes; one that is null in some rows earns a warning, as a model will have to do without there.
        num_rows: Rows of the table.
    """
    gx = import_gx()
    expectations: list[Any] = []
    for column in contract.columns:
        expectations += _column_expectations(gx.expectations, column, widths, num_nulls, num_rows)
    expectations += _table_expectations(gx.expectations, contract)
    return gx.ExpectationSuite(name=contract.name, expectations=expectations)


def column_suite(contract: Table) -> Any:
    """What is expected of columns as a whole, for a frame of the distinct values of `spread_columns`."""
    gx = import_gx()
    expectations = [e for column in contract.columns for e in _spread_expectations(gx.expectations, column)]
    return gx.ExpectationSuite(name=f"{contract.name} columns", expectations=expectations)


def spread_columns(contract: Table) -> list[str]:
    """The measured columns of whose distinct values `column_suite` speaks."""
    varying = [column.name for column in contract.columns if column.must_vary]
    return varying + [f"{column.name}.place" for column in contract.columns if column.one_of]


def _column_expectations(
    gxe: Any, column: Column, widths: Mapping[str, int], num_nulls: Mapping[str, int], num_rows: int
) -> Iterator[Any]:
    name = column.name
    if not column.nullable:
        yield gxe.ExpectColumnValuesToNotBeNull(
            column=name, severity="critical", meta=_meta(name, "are null", "fill or drop these rows")
        )
    elif num_nulls[name] < num_rows:
        yield gxe.ExpectColumnValuesToNotBeNull(
            column=name, severity="warning", meta=_meta(name, "are null while others are not", "fill them")
        )
    if column.minimum is not None or column.maximum is not None:
        yield gxe.ExpectColumnValuesToBeBetween(
            column=name,
            min_value=column.minimum,
            max_value=column.maximum,
            severity="critical",
            meta=_meta(name, _outside(column), "correct or drop these rows"),
        )
    if column.is_vector:
        yield from _vector_expectations(gxe, name, None if column.any_width else widths[name])
    if column.one_of:
        yield from _word_expectations(gxe, column)
    if column.is_prose:
        yield from _prose_expectations(gxe, column)
    if column.refers_to is not None:
        yield gxe.ExpectColumnValuesToBeInSet(
            column=f"{name}.known",
            value_set=[True],
            severity="critical",
            meta=_meta(
                name,
                f"are not in table {column.refers_to}",
                f"add them to {column.refers_to} or drop these rows",
            ),
        )


def _vector_expectations(gxe: Any, name: str, width: int | None) -> Iterator[Any]:
    yield gxe.ExpectColumnValuesToBeBetween(
        column=f"{name}.num_bad",
        max_value=0,
        severity="critical",
        meta=_meta(
            name, "hold null, NaN or infinite numbers", "compute these vectors again or set them to null"
        ),
    )
    if width is None:
        return
    yield gxe.ExpectColumnValuesToBeBetween(
        column=f"{name}.width",
        min_value=width,
        max_value=width,
        severity="critical",
        meta=_meta(name, f"do not have {width} numbers like most", "compute these vectors with one encoder"),
    )


def _word_expectations(gxe: Any, column: Column) -> Iterator[Any]:
    name, words = column.name, ", ".join(column.one_of)
    yield gxe.ExpectColumnValuesToBeInSet(
        column=f"{name}.place",
        value_set=list(range(len(column.one_of))),
        severity="critical",
        meta=_meta(name, f"are none of {words}", "write one of these words"),
    )


def _spread_expectations(gxe: Any, column: Column) -> Iterator[Any]:
    name, words = column.name, ", ".join(column.one_of)
    if column.must_vary:
        yield gxe.ExpectColumnUniqueValueCountToBeBetween(
            column=name,
            min_value=2,
            severity="critical",
            meta=_meta(name, "hold one and the same value", "give the table rows with another value too"),
        )
    for place in range(len(column.one_of)):
        yield gxe.ExpectColumnDistinctValuesToContainSet(
            column=f"{name}.place",
            value_set=[place],
            severity="critical",
            meta=_meta(name, f"are not {column.one_of[place]}", f"give the table rows of {words}"),
        )


def _prose_expectations(gxe: Any, column: Column) -> Iterator[Any]:
    name, apart = column.name, column.apart_by
    wanted: list[tuple[str, Any, str, str, str]] = [
        ("blank", False, "critical", "hold no character but spaces", "drop these rows"),
        ("num_bad", 0, "critical", "hold NUL or broken UTF-8", "decode the text again or drop these rows"),
    ]
    if apart is not None:
        wanted += [
            ("elsewhere", False, "critical", f"stand in another {apart} too", f"keep one {apart} for each"),
            ("again", False, "warning", "repeat another row's", "keep one row for each"),
        ]
        yield gxe.ExpectColumnValuesToBeBetween(
            column=f"{name}.shared",
            max_value=MOST_SHARED,
            severity="warning",
            meta=_meta(
                name, f"have half of their sentences in another {apart} too", f"keep one {apart} for each"
            ),
        )
    for measured, value, severity, problem, mend in wanted:
        yield gxe.ExpectColumnValuesToBeInSet(
            column=f"{name}.{measured}",
            value_set=[value],
            severity=severity,
            meta=_meta(name, problem, mend),
        )


def _table_expectations(gxe: Any, contract: Table) -> Iterator[Any]:
    key, order = ", ".join(contract.key), ", ".join(contract.sorted_by)
    duplicates = _meta(key, "repeat the key of another row", "keep one row for each key")
    if len(contract.key) == 1:
        yield gxe.ExpectColumnValuesToBeUnique(column=key, severity="critical", meta=duplicates)
    elif contract.key:
        yield gxe.ExpectCompoundColumnsToBeUnique(
            column_list=list(contract.key), severity="critical", meta=duplicates
        )
    if contract.sorted_by:
        yield gxe.ExpectColumnValuesToBeInSet(
            column=IN_ORDER,
            value_set=[True],
            severity="critical",
            meta=_meta(
                contract.sorted_by[-1],
                f"stand out of the order {order}",
                f"sort {contract.file_name} by {order}",
            ),
        )


def _meta(column: str, problem: str, mend: str) -> dict[str, str]:
    return {"column": column, "problem": problem, "mend": mend}


def _outside(column: Column) -> str:
    if column.maximum is None:
        return f"are below {column.minimum:g}"
    if column.minimum is None:
        return f"are above {column.maximum:g}"
    return f"are outside {column.minimum:g} to {column.maximum:g}"
