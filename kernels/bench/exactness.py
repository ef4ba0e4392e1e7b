"""How exact ours is: over the sweep of each operator, the worst error of each result against float64."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.registry import operators


class Finding(NamedTuple):
    """The worst of some cases of one operator, result and type."""

    op: str
    quantity: str
    dtype: str
    cases: int
    error: float
    allowed: float
    where: str

    @property
    def passed(self) -> bool:
        """Tell whether every case kept to what its type allows."""
        return self.error <= self.allowed


def sweep(names: Sequence[str], device: str, part: int, parts: int, seconds: float) -> list[Finding]:
    """Run the sweeps of these operators (all without a name), or one of several parts, for some seconds."""
    found = []
    deadline = time.perf_counter() + seconds
    for operator in operators(names):
        for number, case in enumerate(operator.sweep(device)):
            if number % parts == part and time.perf_counter() < deadline:
                try:
                    errors = operator.errors(case)
                except Exception as problem:  # the other cases still tell something
                    where = f"{case.shape}: {type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
                    found.append(Finding(case.op, case.mode, case.dtype, 1, float("inf"), 0.0, where))
                    continue
                found += [
                    Finding(case.op, name, case.dtype, 1, error, allowed, case.shape)
                    for name, error, allowed in errors
                ]
    return worst(found)


def worst(findings: Iterable[Finding]) -> list[Finding]:
    """Merge the findings of one result and type: the number of cases adds up, the worst error stands."""
    merged: dict[tuple[str, str, str], Finding] = {}
    for each in findings:
        key = (each.op, each.quantity, each.dtype)
        before = merged.get(key)
        if before is not None:
            # Not a number is worse than any.
            worse = each if not each.error <= before.error else before
            each = worse._replace(cases=before.cases + each.cases, allowed=min(before.allowed, each.allowed))
        merged[key] = each
    return sorted(merged.values())


def table(findings: Sequence[Finding]) -> str:
    """Lay the findings out in Markdown."""
    lines = [
        "| operator | result | type | cases | worst error | allowed | at |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in findings:
        mark = "" if each.passed else " **too large**"
        lines.append(
            f"| {each.op} | {each.quantity} | {each.dtype} | {each.cases} | {each.error:.1e}{mark} | "
            f"{each.allowed:.0e} | {each.where} |"
        )
    return "\n".join(lines)


def write(path: Path, findings: Sequence[Finding]) -> None:
    """Keep findings as lines of JSON, so that the parts of a sweep can be put together."""
    path.write_text("".join(json.dumps(each._asdict()) + "\n" for each in findings), encoding="utf-8")


def read(path: Path) -> list[Finding]:
    """Read what `write` kept."""
    return [Finding(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
