"""`feedworks schedule` against the API's stub: files become recurring runs, and bad ones send nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks.papers import PAPERS

from .conftest import ROOT, Command
from .kfp_stub import kfp_stub

COMMITTED = ROOT / "manifests" / "recurring-runs"
GOOD = "pipeline: mari\ncron: '0 4 * * *'\n"


def test_the_committed_definitions_become_recurring_runs(feedworks: Command) -> None:
    with kfp_stub() as api:
        for files in (COMMITTED, COMMITTED / "mari.yaml"):  # the second one replaces what the first one made
            done = feedworks("schedule", files, "--host", api.address)
            assert done.returncode == 0, done.stderr
        made = {each["display_name"]: each for each in api.schedules.values()}
    assert len(api.schedules) == len(PAPERS)
    assert set(made) == set(PAPERS)
    assert api.runs == []
    for each in made.values():
        assert each["service_account"] == "feedworks-pipeline"
        assert each["mode"] == "ENABLE"
        assert each["runtime_config"]["parameters"]["source"].startswith("/workspace/")
    assert made["ocarm"]["trigger"] == {"cron_schedule": {"cron": "0 0 5 * * SUN"}}
    asked = made["ksa"]["runtime_config"]["parameters"]
    assert asked["num_gpus"] == "1"
    assert (asked["model_cpu"], asked["model_memory"]) == ("8", "64Gi")
    assert asked["gpu_node_selector"] == {"nvidia.com/gpu.present": "true"}
    assert asked["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipeline: mari\n", "expected `pipeline`, `cron` and options"),
        ("- mari\n", "expected `pipeline`, `cron` and options"),
        ("a: [\n", "is no YAML"),
        ("pipeline: mary\ncron: '0 4 * * *'\n", "no paper is called 'mary'"),
        ("pipeline: mari\ncron: '0 0 4 * * *'\n", "expected five fields"),
        (GOOD + "gpu: 1\n", "No such option '--gpu'"),
        (GOOD + "host: http://localhost:8888\n", "host: files are for any cluster; give it as --host"),
        (GOOD + "gpus: -1\n", "-1 is not in the range"),
        (GOOD + "gpus: true\n", "gpus: expected a text, a number or a list of them, got True"),
        (GOOD + "data: events\n", "give a path that they see, /workspace/events"),
        (GOOD + "set: [nonsense=1]\n", "unknown setting 'nonsense'"),
    ],
)
def test_a_wrong_definition_is_named_and_nothing_is_sent(
    feedworks: Command, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(text)
    with kfp_stub() as api:
        done = feedworks("schedule", ".", "--host", api.address)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert "b.yaml" in done.stderr
    assert (api.packages, api.schedules) == ([], {})


def test_a_folder_without_definitions_is_told(feedworks: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = feedworks("schedule", "empty", "--host", "http://127.0.0.1:9")
    assert "empty has no *.yaml" in done.stderr
