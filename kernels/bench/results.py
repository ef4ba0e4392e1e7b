"""Rows of results: appended to a CSV file in one step, read back, laid out as a table for a README."""

from __future__ import annotations

import csv
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.registry import OURS

COLUMNS = (
    *("date", "device", "torch", "triton", "op", "mode", "shape", "dtype", "provider"),
    *("min_s", "p20_s", "p50_s", "p80_s", "clock", "flops", "bytes", "fraction_of_ceiling", "speedup"),
    *("error", "load", "commit", "note"),
)
Row = Mapping[str, str]
# Below this no machine is bound by operations.
_FLOPS_OF_A_BYTE = 10


def machine(device: str) -> dict[str, str]:
    """Return the columns that are the same for all rows of a run."""
    from importlib.metadata import PackageNotFoundError, version

    from feedworks_kernels.measuring import device_label

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "device": device_label(device),
        "torch": torch.__version__,
        "triton": triton,
        "commit": _commit(),
    }


def _commit() -> str:
    """Name the commit, with `-dirty` where files differ from it; empty where there is no git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to the file by one rename; rows that are there stay, also those of a run beside this one.

    Raises:
        ValueError: a row has a column that `COLUMNS` does not name.
    """
    unknown = {name for row in rows for name in row} - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}: expected {', '.join(COLUMNS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        before = read(path)
        names = [*COLUMNS, *(name for name in (before[0] if before else {}) if name not in COLUMNS)]
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(before)
                writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read(path: Path) -> list[Row]:
    """Read all rows; none where there is no file yet.

    Raises:
        ValueError: the file is no table of results.
    """
    if not path.exists() or not path.stat().st_size:
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = [*csv.DictReader(file)]
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or "provider" not in row:
            raise ValueError(f"{path}, line {number}: expected as many fields as the header names")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Lay out the newest row of every measurement in Markdown, ours first in each group.

    `ours x` is how often ours fits into the provider's time, `of ceiling` the least time for the useful work,
    by the ceilings measured in the same run, divided by the time it took.
    """
    key = ("device", "op", "mode", "shape", "dtype")
    newest: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        group = newest.setdefault(tuple(row[name] for name in key), {})
        if group and row["date"] != next(iter(group.values()))["date"]:
            group.clear()
        group[row["provider"]] = row
    lines: list[str] = []
    device = ""
    for (where, *_), group in newest.items():
        if where != device:
            first, device = next(iter(group.values())), where
            versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "triton") if first[name])
            lines += ["", f"{where}; {versions}", "", *_HEAD]
        lines += [_line(row) for row in sorted(group.values(), key=lambda row: row["provider"] != OURS)]
    return "\n".join(lines[1:])


_HEAD = (
    "| operator | mode | shape | type | provider | p50 | p20 .. p80 | ours x | of ceiling | error |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def _line(row: Row) -> str:
    spread = f"{_seconds(row['p20_s'])} .. {_seconds(row['p80_s'])}" if row["p50_s"] else ""
    cells = (
        *(row[name] for name in ("op", "mode", "shape", "dtype", "provider")),
        _seconds(row["p50_s"]) or row["note"],
        spread,
        *(_short(row[name]) for name in ("speedup", "fraction_of_ceiling")),
        row["error"] or (row["note"] if row["p50_s"] else ""),
    )
    return f"| {' | '.join(cells)} |"


def _ours(row: Row) -> str:
    """Time, useful operations (of little work per byte: bytes) a second, share of the ceiling."""
    seconds, flops, moved = (float(row[name]) for name in ("p50_s", "flops", "bytes"))
    rate = f"{moved / seconds / 1e9:.3g} GB/s"
    if flops > _FLOPS_OF_A_BYTE * moved:
        rate = f"{flops / seconds / 1e12:.3g} TFLOP/s"
    return f"{_seconds(row['p50_s'])}, {rate}, {_short(row['fraction_of_ceiling'])} of ceiling"


def _seconds(text: str) -> str:
    if not text:
        return ""
    seconds = float(text)
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    return ""


def _short(text: str) -> str:
    return f"{float(text):.3g}" if text else ""


def _text(value: object) -> str:
    if value is None or value != value:  # not a number
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other runs of this program; the lock leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def as_text(rows: Sequence[Mapping[str, object]]) -> Sequence[Row]:
    """Return rows as they would be read back from a file."""
    return [{name: _text(row.get(name)) for name in COLUMNS} for row in rows]


def label(row: Row) -> str:
    """Name the case of a row for people."""
    return f"{row['op']} {row['mode']} {row['shape']} {row['dtype']}"


def brief(rows: Sequence[Row]) -> list[str]:
    """Lay a run out in a line for each case: ours, its share of the ceiling, each peer's time over ours."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(label(row), []).append(row)
    lines = []
    for name, group in cases.items():
        words = []
        for row in sorted(group, key=lambda row: row["provider"] != OURS):
            if row["provider"] == OURS:
                words.append(_ours(row) if row["p50_s"] else row["note"])
            elif row["p50_s"]:
                ratio = _short(row["speedup"])
                words.append(f"{row['provider']} {ratio + 'x' if ratio else _seconds(row['p50_s'])}")
            else:
                words.append(f"{row['provider']} -")
        lines.append(f"- {name}: {'; '.join(words)}")
    return lines
