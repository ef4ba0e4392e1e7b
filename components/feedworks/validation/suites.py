"""Great Expectations over measured frames, and the checks of all frames of a table added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from feedworks.contracts.expectations import column_suite, import_gx, suite
from feedworks.contracts.tables import Table
from feedworks.errors import DataError
from feedworks.validation.blocks import Facts, Spread
from feedworks.validation.result import Check

MAX_EXAMPLES = 5


class Suites:
    """The suite of a table, run over one frame after the other.

    Args:
        contract: The table.
        facts: What the suite must know of the whole table.
        num_rows: Of the whole table.
    """

    def __init__(self, contract: Table, facts: Facts, num_rows: int) -> None:
        context = import_gx().get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("measured").add_dataframe_asset(contract.name)
        self._definition = asset.add_batch_definition_whole_dataframe("all")
        self._suite = suite(contract, facts.widths, facts.num_nulls, num_rows)
        self._contract, self._num_rows = contract, num_rows
        self._checks: dict[tuple[str, str, str], Check] = {}

    def add(self, frame: pd.DataFrame, first_row: int) -> None:
        """Validate a measured frame whose first row is this one of the table."""
        for outcome in self._outcomes(self._suite, frame):
            check = self._check(outcome, frame, first_row)
            key = (check.column, check.expectation, check.problem)
            before = self._checks.get(key)
            self._checks[key] = check if before is None else _both(before, check)

    def checks(self, spread: Spread) -> list[Check]:
        """The checks of all frames together, and those of columns as a whole."""
        found = list(self._checks.values())
        values = spread.frame()
        if values is not None:
            outcomes = self._outcomes(column_suite(self._contract), values)
            # What is expected of a column as a whole has no unexpected rows of its own: all rows are.
            found += [
                replace(check, count=0 if check.success else self._num_rows, examples=())
                for check in (self._check(outcome, values, 0) for outcome in outcomes)
            ]
        # Great Expectations answers in an order of its own.
        names = [column.name for column in self._contract.columns]
        return sorted(found, key=lambda c: (names.index(c.column.split(",")[0]), c.expectation, c.problem))

    def _outcomes(self, expected: Any, frame: pd.DataFrame) -> Iterable[Mapping[str, Any]]:
        batch = self._definition.get_batch({"dataframe": frame})
        outcome = batch.validate(
            expected, result_format={"result_format": "SUMMARY", "partial_unexpected_count": MAX_EXAMPLES}
        )
        return (result.to_json_dict() for result in outcome.results)

    def _check(self, outcome: Mapping[str, Any], frame: pd.DataFrame, first_row: int) -> Check:
        config, found = outcome["expectation_config"], outcome["result"]
        if "unexpected_count" not in found and "observed_value" not in found:
            reason = str(outcome["exception_info"])[:200]
            raise DataError(
                f"table {self._contract.name}: {config['type']} could not be evaluated ({reason})"
            )
        rows = (int(i) for i in found.get("partial_unexpected_index_list") or ())
        return Check(
            table=self._contract.name,
            column=config["meta"]["column"],
            problem=config["meta"]["problem"],
            success=bool(outcome["success"]),
            count=int(found.get("unexpected_count", 0)),
            num_rows=self._num_rows,
            mend=config["meta"]["mend"],
            severity=config["severity"],
            examples=tuple(self._examples(rows, frame, first_row, config["kwargs"].get("column", ""))),
            expectation=config["type"],
        )

    def _examples(
        self, rows: Iterator[int], frame: pd.DataFrame, first_row: int, column: str
    ) -> Iterator[str]:
        """Rows by their keys, or where they have none by the value that was looked at."""
        for row in rows:
            values = [f"{name}={frame[name].iloc[row]}" for name in self._contract.key or (column,)]
            yield f"row {first_row + row}: {', '.join(values)}"


def _both(before: Check, check: Check) -> Check:
    examples = (*before.examples, *check.examples)[:MAX_EXAMPLES]
    return replace(
        before,
        success=before.success and check.success,
        count=before.count + check.count,
        examples=examples,
    )
