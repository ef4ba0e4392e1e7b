"""Commands that need no model: list, help, data, report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feedworks.cli.summary import summary
from feedworks.papers import PAPERS, Shown
from feedworks.results import last_results

from .conftest import Command


def test_help_names_every_command(feedworks: Command) -> None:
    result = feedworks("--help")
    assert result.returncode == 0
    commands = ["compile", "data", "demo", "features", "list", "report", "run", "schedule", "serve", "submit"]
    assert [line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines()] == commands


def test_help_is_instant() -> None:
    code = "import sys; from feedworks.cli import main; sys.argv = ['feedworks', '--help']; main()"
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    ).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listed.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "pandas", "pyarrow", "kfp", "feast", "bentoml", "pydantic"}


def test_help_without_words_is_help(feedworks: Command) -> None:
    assert feedworks().stderr.startswith("Usage: feedworks")


def test_list_names_the_papers_with_their_source(feedworks: Command) -> None:
    assert "recochain    Harmonizing" in feedworks("list").stdout
    assert "2604.25787" in feedworks("list").stdout


def test_synth_validate_and_import(feedworks: Command, tmp_path: Path) -> None:
    made = feedworks("data", "synth", "--users", "50", "--items", "60", "--seed", "3", "--out", "data")
    assert (made.returncode, made.stdout) == (0, "wrote data; next: feedworks data validate data\n")
    assert pq.read_metadata(tmp_path / "data" / "items.parquet").num_rows == 60
    checked = feedworks("data", "validate", "data", "--report", "report.html")
    assert checked.returncode == 0, checked.stderr
    assert (tmp_path / "report.html").read_text().lower().startswith("<!doctype html")


def test_synth_makes_ranking_data_too(feedworks: Command, tmp_path: Path) -> None:
    words = ["data", "synth", "--kind", "ranking", "--users", "30", "--items", "40", "--out", "data"]
    assert feedworks(*words).stdout == "wrote data; next: feedworks data validate data\n"
    files = {path.name for path in (tmp_path / "data").iterdir()}
    assert files == {"train.parquet", "valid.parquet", "test.parquet", "fields.json"}
    assert feedworks("data", "validate", "data").returncode == 0


def test_synth_makes_retention_data_too(feedworks: Command, tmp_path: Path) -> None:
    words = ["data", "synth", "--kind", "retention", "--users", "30", "--noise", "high", "--out", "data"]
    assert feedworks(*words).stdout == "wrote data; next: feedworks data validate data\n"
    files = {path.name for path in (tmp_path / "data").iterdir()}
    assert files == {"events.parquet", "catalogue.parquet", "profiles.parquet"}
    assert feedworks("data", "validate", "data").returncode == 0
    refused = feedworks("data", "synth", "--noise", "low", "--out", "other")
    assert "--noise is for --kind retention, not interactions; leave it out" in refused.stderr


def test_synth_makes_text_too(feedworks: Command, tmp_path: Path) -> None:
    words = ["data", "synth", "--kind", "text", "--documents", "12", "--words", "80", "--out", "data"]
    assert feedworks(*words).stdout == "wrote data; next: feedworks data validate data\n"
    assert pq.read_metadata(tmp_path / "data" / "documents.parquet").num_rows == 12
    assert feedworks("data", "validate", "data", "--kind", "text").returncode == 0
    refused = feedworks("data", "synth", "--kind", "text", "--users", "5", "--out", "other")
    assert (
        "--users is for --kind interactions or ranking or retention, not text; leave it out" in refused.stderr
    )


def test_a_folder_of_texts_is_imported_where_text_is_asked_for(feedworks: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_text("\n\n".join(f"Paragraph {i}." for i in range(99)))
    assert "holds the files of no known data set" in feedworks("data", "import", "raw", "--out", "a").stderr
    made = feedworks("data", "import", "raw", "--kind", "text", "--out", "data")
    assert made.stdout == "wrote data from Any folder of texts; next: feedworks data validate data\n"
    assert feedworks("data", "validate", "data").returncode == 0
    (raw / "input.txt").write_text("First Citizen:\nSpeak.")
    refused = feedworks("data", "import", "raw", "--kind", "ranking", "--out", "other")
    assert "raw holds tiny_shakespeare, which makes data of kind text, not ranking" in refused.stderr


def test_data_commands_replace_nothing_but_tables(feedworks: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "Toys.txt").write_text("1 2 3\n")
    (raw / "Toys_item2attributes.json").write_text("{}")
    for words in (["synth", "--items", "10"], ["import", "raw"], ["fetch", "amazon_toys"]):
        result = feedworks("data", *words, "--out", "raw")
        assert result.returncode == 1
        assert result.stderr == (
            "feedworks: raw holds other files (Toys.txt); give a folder of its own for the data\n"
        )
    assert sorted(path.name for path in raw.iterdir()) == ["Toys.txt", "Toys_item2attributes.json"]
    for path in raw.iterdir():
        path.unlink()
    assert feedworks("data", "synth", "--items", "10", "--out", "raw").returncode == 0
    assert feedworks("data", "synth", "--items", "10", "--out", "raw").returncode == 0
    shutil.rmtree(raw)
    assert "is the current folder" in feedworks("data", "synth", "--out", ".").stderr


def test_a_broken_folder_does_not_validate(feedworks: Command, tmp_path: Path) -> None:
    feedworks("data", "synth", "--users", "50", "--items", "60", "--out", "data")
    table = pq.read_table(tmp_path / "data" / "interactions.parquet")
    pq.write_table(table.drop_columns("item_id"), tmp_path / "data" / "interactions.parquet")
    result = feedworks("data", "validate", "data")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("feedworks: data data: ")
    assert "interactions, column item_id" in error


def test_data_list_shows_licences(feedworks: Command) -> None:
    lines = feedworks("data", "list").stdout.splitlines()
    assert any(line.startswith("amazon_beauty ") and "[" in line for line in lines)


def test_report_prints_a_table(feedworks: Command, tmp_path: Path) -> None:
    metrics = {
        "test/popularity/recall@5": 0.0625,
        "test/rerank/recall@5": 0.25,
        "test/rerank/recall@5/ci_low": 0.2,
        "test/rerank/ndcg@10": 0.125,
        "test/rerank/coverage@10": 0.5,
        "test/rerank_gain/recall@5": 0.031,
        "test/invalid_sid_rate": 0.0,
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "report.html").touch()
    lines = [line.split() for line in feedworks("report", ".").stdout.splitlines()]
    assert lines == [
        ["recall@5", "ndcg@10"],
        ["rerank", "0.2500", "0.1250"],
        ["popularity", "0.0625"],
        ["rerank_gain", "+3.1%"],
        ["report:", "report.html"],
    ]


def test_a_run_that_the_gate_kept_back_is_not_taken_for_the_earlier_one(tmp_path: Path) -> None:
    for folder, recall in ((tmp_path, 0.25), (tmp_path / "rejected", 0.125)):
        folder.mkdir(exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"test/rerank/recall@5": recall}))
        (folder / "report.html").touch()
    (tmp_path / "model").mkdir()
    last = summary(last_results(tmp_path))
    assert "0.1250" in last
    assert f"report: {tmp_path / 'rejected' / 'report.html'}" in last
    assert "model:" not in last
    assert f"kept back by the gate since: {tmp_path / 'rejected'}" in summary(tmp_path).splitlines()


def test_a_report_shows_the_tables_of_every_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = (Shown("test", ("auc", "logloss"), "max"), Shown("pace", ("ms@",), "min"))
    paper = PAPERS["recochain"]._replace(name="other", shown=shown)
    monkeypatch.setitem(PAPERS, "other", paper)
    metrics = {"test/twin/auc": 0.75, "test/twin/logloss": 0.00004, "verify/float32/order": 1.0}
    timings = {"pace/a_name_longer_than_a_column/ms@100": 3.0, "pace/fast/ms@100": 1.5, "pace/fast/x": 2.0}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "bench.json").write_text(json.dumps({"metrics": timings}))
    lines = summary(tmp_path).splitlines()
    assert [line.split() for line in lines] == [
        ["auc", "logloss"],
        ["twin", "0.7500", "4.0e-05"],
        [],
        ["pace", "ms@100"],
        ["fast", "1.5000"],
        ["a_name_longer_than_a_column", "3.0000"],
    ]
    assert len({len(line) for line in lines[3:]}) == 1


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"test/x/recall@5": "a"}', '{"test/x/recall@a": 1}', '{"test/x/recall": 1}']
)
def test_a_report_of_something_else_is_one_line(feedworks: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    result = feedworks("report", ".")
    assert result.returncode == 1
    assert result.stderr == (
        "feedworks: metrics.json holds no metrics of a run; make it again with `feedworks run`\n"
    )


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["run", "--help"], ["submit", "--help"]])
def test_every_help_works(feedworks: Command, words: list[str]) -> None:
    assert feedworks(*words).returncode == 0
