import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from feedworks.results import finish, once, publish


def written(folder: Path, text: str, *, model: bool) -> tuple[Path, Path | None]:
    for name in ("metrics.json", "report.html"):
        (folder / "evaluation").mkdir(parents=True, exist_ok=True)
        (folder / "evaluation" / name).write_text(text)
    if not model:
        return folder / "evaluation", None
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(text)
    return folder / "evaluation", folder / "model"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_a_model_that_passes_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    publish(*written(tmp_path / "first", "first", model=True), tmp_path / "out")
    publish(*written(tmp_path / "weak", "weak", model=False), tmp_path / "out")
    publish(*written(tmp_path / "second", "second", model=True), tmp_path / "out")
    assert contents(tmp_path / "out") == dict.fromkeys(
        ("metrics.json", "report.html", "model/config.json"), "second"
    )


def test_a_rejected_model_leaves_the_earlier_results_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(*written(tmp_path / "first", "first", model=True), tmp_path / "out")
    publish(*written(tmp_path / "weak", "weak", model=False), tmp_path / "out")
    assert contents(tmp_path / "out") == {
        "metrics.json": "first",
        "report.html": "first",
        "model/config.json": "first",
        "rejected/metrics.json": "weak",
        "rejected/report.html": "weak",
    }
    assert "the earlier model stays" in capsys.readouterr().err


def test_a_first_model_that_is_rejected_still_shows_its_metrics(tmp_path: Path) -> None:
    publish(*written(tmp_path / "weak", "weak", model=False), tmp_path / "out")
    assert contents(tmp_path / "out") == {"metrics.json": "weak", "report.html": "weak"}


def test_a_result_that_cannot_be_written_leaves_the_earlier_ones_together(tmp_path: Path) -> None:
    publish(*written(tmp_path / "first", "first", model=True), tmp_path / "out")
    evaluation, model = written(tmp_path / "second", "second", model=True)
    assert model is not None
    (model / "weights").symlink_to("absent")  # a copy fails here as it would on a full disk
    with pytest.raises(shutil.Error):
        publish(evaluation, model, tmp_path / "out")
    assert contents(tmp_path / "out") == dict.fromkeys(
        ("metrics.json", "report.html", "model/config.json"), "first"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "model",
        "report.html",
    ]


class Made(NamedTuple):
    """What a step returns."""

    num_users: int
    metrics: dict[str, float]


def test_a_step_says_what_it_made_in_one_short_line(tmp_path, capsys):
    def count_users(users: int) -> Made:
        return Made(users, {f"metric {i}": 0.1 for i in range(100)})

    def split(_: int) -> list[float]:
        return [0.1] * 100

    once(tmp_path / "absent", count_users, 3)
    once(tmp_path / "absent", split, 3)
    assert capsys.readouterr().err.splitlines() == [
        "count_users: started",
        "count_users: done in 0.0 s, num_users 3",
        "split: started",
        "split: done in 0.0 s",
    ]


def test_timings_go_along(tmp_path: Path) -> None:
    evaluation, model = written(tmp_path / "first", "first", model=True)
    (evaluation / "bench.json").write_text("timings")
    publish(evaluation, model, tmp_path / "out")
    assert contents(tmp_path / "out")["bench.json"] == "timings"


@pytest.mark.parametrize("model", [True, False])
def test_the_end_of_a_run_removes_what_other_runs_left(tmp_path: Path, model: bool) -> None:
    runs = tmp_path / "out" / "work" / "runs"
    evaluation, _ = written(runs / "this", '{"a": 1.0}', model=model)
    written(runs / "other", "{}", model=True)
    assert finish(runs / "this", evaluation, runs / "this" / "model", tmp_path / "out") == {"a": 1.0}
    assert [path.name for path in runs.iterdir()] == ["this"]
    assert (tmp_path / "out" / "model").exists() == model
