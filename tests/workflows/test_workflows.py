"""What GitHub runs: pinned actions, few rights, limits, and targets of the Makefile that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
# Steps that must be there, word for word.
RUNS = {
    "check.yaml": "make test PYTHON=python",
    "images.yaml": "make images PYTHON=python",
    "kind.yaml": "make kind",
}
_USES = re.compile(r"^\s*(?:- )?uses:\s*(\S+)(.*)$", re.MULTILINE)
_PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def flaws(text: str) -> list[str]:
    """Return what is wrong with a workflow."""
    workflow = yaml.safe_load(text)
    found = []
    for action, comment in _USES.findall(text):
        if not _PINNED.fullmatch(action) or not re.fullmatch(r" # v\d+(\.\d+)*", comment):
            found.append(f"{action} is not pinned to a commit, with its version as comment")
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("its rights are more than to read, or not stated")
    if "concurrency" not in workflow:
        found.append("older runs of a branch go on")
    for name, job in workflow["jobs"].items():
        if not 0 < job.get("timeout-minutes", 0) <= 120:
            found.append(f"job {name} has no limit of time")
        if "permissions" in job or job["runs-on"].endswith("latest"):
            found.append(f"job {name} has rights of its own, or a machine that changes")
    for step in steps(workflow):
        if (
            "checkout@" in step.get("uses", "")
            and step.get("with", {}).get("persist-credentials") is not False
        ):
            found.append("its token stays on the disk")
        # Names of branches and titles are written by strangers, and would be read as commands.
        if re.search(r"\$\{\{\s*github\.(event|head_ref)", step.get("run", "")):
            found.append("a stranger's text is a command")
    return found


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_the_three() -> None:
    assert {path.name for path in WORKFLOWS} == set(RUNS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_flaw(path: Path) -> None:
    assert not flaws(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_the_makefile_has(path: Path) -> None:
    commands = [step["run"] for step in steps(yaml.safe_load(path.read_text())) if "run" in step]
    assert RUNS[path.name] in commands
    called = {word for command in commands for word in re.findall(r"\bmake ([a-z-]+)", command)}
    assert called <= targets()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8", "actions/checkout@v5"),
        ("actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8", "actions/checkout@08c6903"),
        (" # v5.0.0", ""),
        ("contents: read", "contents: write"),
        ("permissions:\n  contents: read", "env: {}"),
        ("concurrency:", "env:"),
        ("    timeout-minutes: 120\n", ""),
        ("timeout-minutes: 120", "timeout-minutes: 360"),
        ("ubuntu-24.04", "ubuntu-latest"),
        ("persist-credentials: false", "persist-credentials: true"),
        ("run: make kind", "run: echo ${{ github.event.pull_request.title }}"),
    ],
)
def test_a_flaw_is_seen(old: str, new: str) -> None:
    text = (ROOT / ".github" / "workflows" / "kind.yaml").read_text()
    assert old in text
    assert flaws(text.replace(old, new))
