"""Documentation that can drift is tested: commands exist, the tree is true, the table of papers is whole."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from feedworks.cli import cli
from feedworks.papers import PAPERS

from .source import ROOT, kept_files

PAGES = sorted(path for path in kept_files() if path.suffix == ".md")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def commands_in(text: str) -> list[str]:
    """Commands in console blocks and in `inline code`, without comments and placeholders."""
    blocks = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = [line.partition(" #")[0].strip() for line in (*lines, *inline)]
    return [line for line in found if re.match(r"(make|feedworks|python -m)(\s|$)", line)]


def problem_of(command: str) -> str | None:
    """Why a documented command would not start; None where it would."""
    words = shlex.split(command)
    if words[0] == "make":
        goals = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        return next((f"no make target {goal}" for goal in goals if goal not in TARGETS), None)
    if words[0] == "python":
        return None if importlib.util.find_spec(words[2]) else f"no module {words[2]}"
    return problem_of_feedworks(words[1:])


def problem_of_feedworks(words: list[str]) -> str | None:
    group: click.Command = cli
    context = click.Context(group)
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        command = group.get_command(context, words[0])
        if command is None:
            return f"no command {words[0]}"
        group, words = command, words[1:]
    options = {name for parameter in [*group.params, *cli.params] for name in parameter.opts} | {"--help"}
    return next(
        (f"no option {w}" for w in words if w.startswith("--") and w.split("=")[0] not in options), None
    )


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_documented_commands_exist(page: Path) -> None:
    problems = {command: problem_of(command) for command in commands_in(page.read_text())}
    assert not {command: problem for command, problem in problems.items() if problem}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize(
    "command",
    [
        "make nonsense",
        "feedworks frob",
        "feedworks data frob",
        "feedworks run x --frob",
        "python -m feedworks.frob",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    assert commands_in(f"```console\n{command}  # comment\n```") == [command]
    assert problem_of(command)


def test_the_tree_in_the_readme_is_true_and_whole() -> None:
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert block
    listed = {line.split()[0].rstrip("/") for line in block.group(1).splitlines()}
    assert not [name for name in listed if not (ROOT / name).exists()]
    packages = [path for path in (ROOT / "components" / "feedworks").iterdir() if any(path.glob("*.py"))]
    folders = {path.relative_to(ROOT).parts[0] for path in kept_files() if path.parent != ROOT}
    expected = {str(path.relative_to(ROOT)) for path in packages}
    visible = {name for name in folders if not name.startswith(".")}
    missing = {name for name in visible if not any(entry.split("/")[0] == name for entry in listed)}
    assert (expected - listed, missing) == (set(), set())


def test_the_table_of_papers_is_whole() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(components/feedworks/(\w+)/\) \| (.*?) \| (.*?) \|$", text, re.M)
    papers = [
        (paper.name, paper.name, f"{paper.title} ({paper.source})", paper.does) for paper in PAPERS.values()
    ]
    assert rows == papers


def test_every_paper_is_registered() -> None:
    folders = {path.parent.name for path in (ROOT / "components" / "feedworks").glob("*/steps.py")}
    assert folders <= set(PAPERS)


def test_contributing_stays_short() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 150
    for title in ("Add a paper", "Add a kernel"):
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        assert len(section.strip().splitlines()) == 8
