"""The gate's findings as one self-contained HTML page: no script, no font, nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

from feedworks.storage import write_bytes
from feedworks.validation.result import Check, GateResult, plural

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #dde2e9; --page: #f6f7f9;
  --card: #fff; --good: #14713d; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333b47;
  --page: #14181e; --card: #1c222b; --good: #5fce90; --bad: #ff8a80; --warn: #f0b95a; } }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
p { color: var(--soft); margin: .25rem 0 1.5rem; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1.1rem 1.25rem; margin: 0 0 1.25rem; overflow-x: auto; }
h2 span { color: var(--soft); font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .4rem .75rem .4rem 0; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child th { border-top: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.passed, .failed, .warned { font-weight: 600; white-space: nowrap; }
.passed { color: var(--good); } .failed { color: var(--bad); } .warned { color: var(--warn); }
code { font: .85em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
td div { color: var(--soft); margin-top: .15rem; }
"""


def write_report(result: GateResult, data_dir: Path, path: Path) -> None:
    """Writes the report to `path`, replacing an earlier one in one step."""
    write_bytes(path, render(result, data_dir).encode())


def render(result: GateResult, data_dir: Path) -> str:
    """The report as one HTML document."""
    state = "passed" if result.success else "failed"
    sizes = {"check": result.checks, "failure": result.failures, "warning": result.warnings}
    counts = ", ".join(plural(len(checks), noun) for noun, checks in sizes.items())
    tables = dict.fromkeys(check.table for check in result.checks)
    sections = "\n".join(_section(result, table) for table in tables)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data validation: {state}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Data validation: <span class="{state}">{state}</span></h1>
<p>{counts} &middot; <code>{escape(str(data_dir))}</code></p>
{sections}
</body>
</html>
"""


def _section(result: GateResult, table: str) -> str:
    rows = f"{result.rows[table]:,} rows" if table in result.rows else "not readable"
    # What went wrong comes first; below it the order of the contract.
    checks = sorted((c for c in result.checks if c.table == table), key=lambda c: c.success)
    body = "\n".join(_row(check) for check in checks)
    head = "<tr><th>Result</th><th>Column</th><th>Check</th><th class='number'>Unexpected rows</th></tr>"
    title = f"<h2>{escape(table)} <span>{rows}</span></h2>"
    return f"<section>\n{title}\n<table>\n{head}\n{body}\n</table>\n</section>"


def _row(check: Check) -> str:
    state = "passed" if check.success else "warned" if check.severity == "warning" else "failed"
    share = f" ({_percent(check.count / check.num_rows)})" if check.num_rows and check.count else ""
    structure = check.expectation == "structure"
    said = escape(check.problem if structure else f"rows that {check.problem}")
    details = "" if structure else f"<div><code>{escape(check.expectation)}</code></div>"
    if not check.success:
        details += "".join(f"<div>{escape(example)}</div>" for example in check.examples)
        details += f"<div><b>To mend:</b> {escape(check.mend)}</div>"
    return (
        f"<tr><td class='{state}'>{state}</td><td><code>{escape(check.column)}</code></td>"
        f"<td>{said}{details}</td><td class='number'>{check.count:,}{share}</td></tr>"
    )


def _percent(share: float) -> str:
    return "below 0.01%" if share < 1e-4 else f"{share:.2%}"
