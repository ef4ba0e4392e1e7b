"""How exact ours is: over the sweep of each operator, the worst error of each result against float64."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from bench.registry import Case, Operator, operators


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


def swept(names: Sequence[str], device: str, part: int, parts: int) -> Iterator[tuple[Operator, Case]]:
    """Yield the sweeps of these operators (all without a name), or one of several parts of each."""
    lists = [
        [(operator, case) for case in operator.sweep(device)][part::parts] for operator in operators(names)
    ]
    # In turns, so that a run that is cut off has seen something of each.
    for row in zip_longest(*lists):
        yield from (each for each in row if each is not None)


def random_cases(names: Sequence[str], device: str, part: int, parts: int) -> Iterator[tuple[Operator, Case]]:
    """Yield random cases of these operators in turn without end; each part draws others."""
    draw = random.Random(1000 * parts + part)
    chosen = operators(names)
    while True:
        for operator in chosen:
            yield operator, operator.random_case(draw, device)


def run(cases: Iterable[tuple[Operator, Case]], seconds: float) -> list[Finding]:
    """Measure the errors of ours for some seconds, and whether a second run gives the same numbers."""
    found = []
    deadline = time.perf_counter() + seconds
    for operator, case in cases:
        if time.perf_counter() > deadline:
            print(f"stopped after {seconds:g} s, before {case.label()}", file=sys.stderr)
            break
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
            each = max(before, each, key=_over)._replace(cases=before.cases + each.cases)
        merged[key] = each
    return sorted(merged.values())


def _over(finding: Finding) -> float:
    """How often the error holds what is allowed; not a number is worse than any."""
    if math.isnan(finding.error):
        return math.inf
    if not finding.allowed:
        return math.inf if finding.error > 0 else 0.0
    return finding.error / finding.allowed


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


def brief(findings: Sequence[Finding]) -> list[str]:
    """Lay findings out in a line for each operator and type, and one for each that is too large."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.op, each.dtype), []).append(each)
    lines = []
    for (op, dtype), group in groups.items():
        errors = [each.error for each in group if "repeated" not in each.quantity]
        passed = sum(each.passed for each in group)
        cases = max(each.cases for each in group)
        found = f"worst {max(errors, default=0.0):.1e}"
        lines.append(f"- {op} {dtype}: {passed} of {len(group)} results pass over {cases} cases, {found}")
        lines += [
            f"  - {each.quantity}: {each.error:.1e}, allowed {each.allowed:.0e}, at {each.where}"
            for each in group
            if not each.passed
        ]
    return lines
