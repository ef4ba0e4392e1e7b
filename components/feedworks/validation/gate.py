"""The validation gate: structure first with pyarrow, then the contract's Great Expectations suite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from feedworks.contracts.expectations import import_gx, suite
from feedworks.contracts.features import FEATURE_TABLES
from feedworks.contracts.files import FILES, is_data_folder
from feedworks.contracts.ranking import FIELDS_FILE, read_fields
from feedworks.contracts.retention import CATALOGUE, EVENTS, PROFILES
from feedworks.contracts.tables import INTERACTIONS, ITEMS, USERS, Kind, Table
from feedworks.contracts.text import TEXT_FOLDER
from feedworks.errors import DataError
from feedworks.progress import say
from feedworks.validation.measure import Measured, measure
from feedworks.validation.report import write_report
from feedworks.validation.result import Check, GateResult
from feedworks.validation.structure import BROKEN, batches, open_table, unreadable

MAX_EXAMPLES = 5
# A table after those that it refers to.
ORDER: dict[Kind, tuple[Table, ...]] = {
    "interactions": (ITEMS, USERS, INTERACTIONS),
    "retention": (CATALOGUE, PROFILES, EVENTS),
    "features": FEATURE_TABLES,
    "text": TEXT_FOLDER,
}


def validate_folder(
    data_dir: Path, report_path: Path | None = None, *, kind: Kind | None = None
) -> GateResult:
    """Checks every table of a data folder against its contract; nothing is raised for bad data.

    Says on stderr what it looks at, and each warning.

    Args:
        data_dir: The data folder.
        report_path: Where to write the HTML report, if one is wanted; replaced in one step.
        kind: What it must hold; without it, what its files are of, and interactions where there are none.

    Raises:
        DataError: There is no such folder.
    """
    if not data_dir.is_dir():
        raise DataError(f"data {data_dir}: no such folder; give the path of a data folder")
    rows: dict[str, int] = {}
    known: dict[str, npt.NDArray[np.int64]] = {}
    checks: list[Check] = []
    kind = kind or _kind(data_dir)
    if kind == "ranking":
        checks.append(_check_fields(data_dir))
    for contract in _contracts(data_dir, kind) if all(check.success for check in checks) else ():
        if contract.required or os.path.lexists(contract.path(data_dir)):  # a broken link is no absence
            say(f"validating {contract.path(data_dir)}")
            checks += _check_table(contract, data_dir, rows, known)
    result = GateResult(rows=rows, checks=tuple(checks))
    for warning in result.warnings:
        say(f"warning: {warning.sentence()}")
    if report_path is not None:
        write_report(result, data_dir, report_path)
    return result


def require_valid(data_dir: Path, report_path: Path | None = None, *, kind: Kind | None = None) -> GateResult:
    """Like `validate_folder`, but a breach of severity critical stops the caller.

    Raises:
        DataError: Names the tables, columns, counts, example rows and mends, and where the report is.
    """
    result = validate_folder(data_dir, report_path, kind=kind)
    if not result.success:
        report = f"; report: {report_path}" if report_path is not None else ""
        raise DataError(f"data {data_dir}: {result.summary()}{report}")
    return result


def _kind(folder: Path) -> Kind:
    return next((kind for kind in FILES if is_data_folder(folder, kind)), "interactions")


def _contracts(folder: Path, kind: Kind) -> tuple[Table, ...]:
    return read_fields(folder).tables() if kind == "ranking" else ORDER[kind]


def _check_fields(folder: Path) -> Check:
    """Whether `fields.json` is whole; the tables of a ranking folder can only be checked by it."""
    problem, success = "names the fields, their sides and sizes", True
    try:
        read_fields(folder)
    except DataError as error:
        problem, success = f"cannot be used ({str(error).rpartition(';')[0] or error})", False
    return Check(
        table="fields",
        column="file",
        problem=problem,
        success=success,
        count=0,
        num_rows=0,
        mend=f"write {FIELDS_FILE} as feedworks.contracts.ranking describes it",
    )


def _check_table(
    contract: Table, folder: Path, rows: dict[str, int], known: dict[str, npt.NDArray[np.int64]]
) -> list[Check]:
    opened = open_table(contract, folder)
    if opened.file is None:
        return opened.checks
    with opened.file as file:
        rows[contract.name] = file.metadata.num_rows
        if not opened.usable:
            return opened.checks
        try:
            measured = measure(contract, batches(file, contract), known)
        except BROKEN as error:
            return [*opened.checks, unreadable(contract, error, file.metadata.num_rows)]
    if len(contract.key) == 1:
        known[contract.name] = measured.frame[contract.key[0]].dropna().to_numpy(np.int64)
    return [*opened.checks, *_run_suite(contract, measured)]


def _run_suite(contract: Table, measured: Measured) -> list[Check]:
    gx = import_gx()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("measured").add_dataframe_asset(contract.name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": measured.frame})
    outcome = batch.validate(
        suite(contract, measured.widths, measured.num_nulls, len(measured.frame)),
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": MAX_EXAMPLES},
    )
    checks = [_as_check(contract, result.to_json_dict(), measured.frame) for result in outcome.results]
    # Great Expectations answers in an order of its own.
    names = [column.name for column in contract.columns]
    return sorted(checks, key=lambda c: (names.index(c.column.split(",")[0]), c.expectation, c.problem))


def _as_check(contract: Table, outcome: Mapping[str, Any], frame: pd.DataFrame) -> Check:
    config, found = outcome["expectation_config"], outcome["result"]
    # What is expected of a column as a whole has no unexpected rows of its own: all rows are.
    of_column = 0 if outcome["success"] else len(frame)
    if "unexpected_count" not in found and "observed_value" not in found:
        reason = str(outcome["exception_info"])[:200]
        raise DataError(f"table {contract.name}: {config['type']} could not be evaluated ({reason})")
    return Check(
        table=contract.name,
        column=config["meta"]["column"],
        problem=config["meta"]["problem"],
        success=bool(outcome["success"]),
        count=int(found.get("unexpected_count", of_column)),
        num_rows=len(frame),
        mend=config["meta"]["mend"],
        severity=config["severity"],
        examples=tuple(
            _row(contract, frame, int(i), config["kwargs"].get("column", ""))
            for i in found.get("partial_unexpected_index_list") or ()
        ),
        expectation=config["type"],
    )


def _row(contract: Table, frame: pd.DataFrame, index: int, column: str) -> str:
    """A row by its key, or where it has none by the value that was looked at."""
    values = [f"{name}={frame[name].iloc[index]}" for name in contract.key or (column,)]
    return f"row {index}: {', '.join(values)}"
