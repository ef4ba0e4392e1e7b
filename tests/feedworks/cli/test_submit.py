"""`feedworks submit` against an HTTP server that speaks the API: what is uploaded and what is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks.cli.submit import _require_answer
from feedworks.errors import FeedworksError

from .conftest import ROOT, Command
from .kfp_stub import kfp_stub

COMPILED = ROOT / "pipelines" / "compiled" / "recochain.yaml"


def test_submit_uploads_the_committed_bytes_and_starts_a_run(feedworks: Command, tmp_path: Path) -> None:
    words = [
        "submit",
        "recochain",
        "--data",
        "/data/events",
        "--preset",
        "small",
        "--gpus",
        "1",
        "--data-version",
        "7",
    ]
    with kfp_stub() as api:
        result = feedworks(
            *words, "--set", "seed=3", "--host", api.address, "--experiment", "exp", HOME=str(tmp_path)
        )
        assert result.returncode == 0, result.stderr
    assert api.packages == [("recochain", COMPILED.read_bytes())]
    assert api.experiments == ["exp"]
    (run,) = api.runs
    assert run["experiment_id"] == "e-exp"
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v-recochain"}
    assert run["runtime_config"]["parameters"] == {
        "source": "/data/events",
        "data_version": "7",
        "preset": "small",
        "overrides": ["seed=3"],
        "num_gpus": "1",
    }
    assert result.stdout.splitlines()[-1] == f"started run run-1 of recochain at {api.address}"


def test_submitting_again_adds_one_version_per_content(feedworks: Command, tmp_path: Path) -> None:
    with kfp_stub() as api:
        for _ in range(3):
            result = feedworks("submit", "recochain", "--host", api.address, HOME=str(tmp_path))
            assert result.returncode == 0, result.stderr
    first, second = api.packages  # the pipeline itself, then one version named by its bytes
    assert first[1] == second[1] == COMPILED.read_bytes()
    assert len(api.runs) == 3
    assert api.experiments == ["feedworks"]
    versions = [run["pipeline_version_reference"]["pipeline_version_id"] for run in api.runs]
    assert versions == ["v-recochain", f"v-{second[0]}", f"v-{second[0]}"]


def test_a_refusal_is_one_line(feedworks: Command, tmp_path: Path) -> None:
    with kfp_stub() as api:
        api.refuse = True
        result = feedworks("submit", "recochain", "--host", api.address, HOME=str(tmp_path))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "403" in result.stderr
    assert "no right to do this" in result.stderr


def test_no_api_is_one_line(feedworks: Command, tmp_path: Path) -> None:
    result = feedworks("submit", "recochain", "--host", "http://127.0.0.1:9", HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("feedworks: no Kubeflow Pipelines API answers at")


@pytest.mark.parametrize("host", ["http://", "http://a b:1", "http://[", "http://x:y"])
def test_an_address_that_is_none_is_told(host: str) -> None:
    with pytest.raises(FeedworksError, match=r"no Kubeflow Pipelines API answers at .*; check --host"):
        _require_answer(host)


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        ("<html>a proxy's page</html>", 200, "no Kubeflow Pipelines API answers at"),
        ("[]", 200, "no Kubeflow Pipelines API answers at"),
        ("<html>nothing here</html>", 404, "refused: 404; check --host"),
    ],
)
def test_a_server_of_another_kind_is_told(page: str, status: int, said: str) -> None:
    with kfp_stub() as api:
        api.page, api.status = page, status
        with pytest.raises(FeedworksError, match=said) as caught:
            _require_answer(api.address)
    assert "html" not in str(caught.value)


def test_a_wrong_setting_is_not_sent(feedworks: Command, tmp_path: Path) -> None:
    with kfp_stub() as api:
        result = feedworks("submit", "recochain", "--host", api.address, "--set", "nonsense=1")
    assert result.returncode == 1
    assert "unknown setting 'nonsense'" in result.stderr
    assert api.packages == []


def test_a_model_from_outside_is_named_to_the_tasks(feedworks: Command, tmp_path: Path) -> None:
    words = [
        "submit",
        "mari",
        "--model",
        "their.package:build",
        "--sides",
        "/data/sides.json",
        "--set",
        "seed=3",
    ]
    with kfp_stub() as api:
        result = feedworks(*words, "--host", api.address, HOME=str(tmp_path))
        assert result.returncode == 0, result.stderr
    assert api.packages == [("mari", COMPILED.with_name("mari.yaml").read_bytes())]
    assert api.runs[0]["runtime_config"]["parameters"]["overrides"] == [
        "seed=3",
        "outside.model=their.package:build",
        "outside.sides=/data/sides.json",
    ]
