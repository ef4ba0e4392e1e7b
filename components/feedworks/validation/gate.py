"""The validation gate: structure first with pyarrow, then the contract's Great Expectations suite.

Tables may be larger than memory: they are looked at in blocks of rows. Held are the ids that other tables
refer to, 8 bytes each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from feedworks.contracts.features import FEATURE_TABLES
from feedworks.contracts.files import FILES, is_data_folder
from feedworks.contracts.ranking import FIELDS_FILE, read_fields
from feedworks.contracts.retention import CATALOGUE, EVENTS, PROFILES
from feedworks.contracts.tables import INTERACTIONS, ITEMS, USERS, Kind, Table
from feedworks.contracts.text import TEXT_FOLDER
from feedworks.errors import DataError
from feedworks.progress import Progress, say
from feedworks.validation.blocks import BLOCK_ROWS, Spread, blocks, facts, told_of
from feedworks.validation.measure import measure_batch
from feedworks.validation.report import write_report
from feedworks.validation.result import Check, GateResult
from feedworks.validation.structure import BROKEN, batches, open_table, unreadable
from feedworks.validation.suites import Suites

# A table after those that it refers to.
ORDER: dict[Kind, tuple[Table, ...]] = {
    "interactions": (ITEMS, USERS, INTERACTIONS),
    "retention": (CATALOGUE, PROFILES, EVENTS),
    "features": FEATURE_TABLES,
    "text": TEXT_FOLDER,
}
REFERRED = {c.refers_to for tables in ORDER.values() for table in tables for c in table.columns}


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
            checks = _check_values(contract, file, known)
        except BROKEN as error:
            return [*opened.checks, unreadable(contract, error, file.metadata.num_rows)]
    return [*opened.checks, *checks]


def _check_values(
    contract: Table, file: pq.ParquetFile, known: dict[str, npt.NDArray[np.int64]]
) -> list[Check]:
    """All rows against the contract, block by block; the ids of a table that others refer to become known."""
    num_rows, spread = file.metadata.num_rows, Spread(contract)
    ids: list[npt.NDArray[np.int64]] = []
    frames = blocks(contract, batches(file, contract), known)
    suites, first_row = None, 0
    for frame in _shown(frames, contract, num_rows) if num_rows > BLOCK_ROWS else frames:
        if suites is None:
            told = facts(contract, [frame] if len(frame) == num_rows else _told(contract, file))
            suites = Suites(contract, told, num_rows)
        suites.add(frame, first_row)
        spread.add(frame)
        if contract.name in REFERRED:
            ids.append(frame[contract.key[0]].dropna().to_numpy(np.int64))
        first_row += len(frame)
    if ids:
        known[contract.name] = np.unique(np.concatenate(ids))
    return suites.checks(spread) if suites else []


def _shown(frames: Iterator[pd.DataFrame], contract: Table, num_rows: int) -> Iterator[pd.DataFrame]:
    with Progress(f"rows of {contract.name}", total=num_rows) as shown:
        for frame in frames:
            yield frame
            shown.advance(len(frame))


def _told(contract: Table, file: pq.ParquetFile) -> Iterator[pd.DataFrame]:
    """Another look at the few columns of which the suite must know something."""
    columns = tuple(replace(column, refers_to=None, is_prose=False) for column in told_of(contract))
    if columns:
        for batch in batches(file, replace(contract, columns=columns)):
            yield measure_batch(replace(contract, columns=columns), batch, {})
