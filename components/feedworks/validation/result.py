"""What the gate found, as plain values that a report, a component and a test can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning"]
MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at in one table.

    `problem` continues a sentence about the unexpected rows ("are null"). `examples` describe some of these
    rows, with their numbers in the file from 0. `count` of `num_rows` rows are unexpected.
    """

    table: str
    column: str
    problem: str
    success: bool
    count: int
    num_rows: int
    mend: str
    severity: Severity = "critical"
    examples: tuple[str, ...] = ()
    expectation: str = "structure"

    def sentence(self) -> str:
        """The failure in one line: table, column, count, example rows and mend."""
        share = f"{self.count:,} of {self.num_rows:,} rows " if self.expectation != "structure" else ""
        rows = f" in all {self.num_rows:,} rows" if self.expectation == "structure" and self.num_rows else ""
        where = (
            f"table {self.table}"
            if self.column in ("file", "rows")
            else f"table {self.table}, column {self.column}"
        )
        examples = f" ({'; '.join(self.examples[:MAX_NAMED])})" if self.examples else ""
        return f"{where}: {share}{self.problem}{rows}{examples}; {self.mend}"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """All checks of one data folder, and the number of rows of each table that could be read."""

    rows: dict[str, int]
    checks: tuple[Check, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        """Failed checks that must stop a run."""
        return tuple(c for c in self.checks if not c.success and c.severity == "critical")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """Failed checks that need not stop a run."""
        return tuple(c for c in self.checks if not c.success and c.severity == "warning")

    @property
    def success(self) -> bool:
        """Whether nothing must stop a run."""
        return not self.failures

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a metrics artifact."""
        return {
            "validation/checks": float(len(self.checks)),
            "validation/failures": float(len(self.failures)),
            "validation/warnings": float(len(self.warnings)),
            **{f"validation/rows/{table}": float(count) for table, count in self.rows.items()},
        }

    def summary(self) -> str:
        """The first failure of each table and a few more in one line, and how many it leaves out."""
        first = {check.table: check for check in reversed(self.failures)}
        others = [check for check in self.failures if check is not first[check.table]]
        named = [first[table] for table in dict.fromkeys(check.table for check in self.failures)]
        named += others[: max(0, MAX_NAMED - len(named))]
        more = plural(len(self.failures) - len(named), "more failure")
        line = " | ".join(check.sentence() for check in named)
        return line if len(named) == len(self.failures) else f"{line} | and {more}"


def plural(count: int, noun: str) -> str:
    """The count with its noun in the right number: "1 failure", "2 failures"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
