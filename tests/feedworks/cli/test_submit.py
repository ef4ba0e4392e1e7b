"""`feedworks submit` against an HTTP server that speaks the API: what is uploaded, started and scheduled."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from feedworks.cli.kfp_api import Api
from feedworks.cli.pipelines import compile_pipeline
from feedworks.cli.submit import submit
from feedworks.cli.uploading import Place, upload_and_run, upload_and_schedule
from feedworks.errors import FeedworksError

from .conftest import ROOT, Command
from .kfp_stub import KfpStub, kfp_stub

COMPILED = ROOT / "pipelines" / "compiled" / "recochain.yaml"
DEFAULTS: dict[str, Any] = {
    "source": "synthetic",
    "data_version": "1",
    "preset": "tiny",
    "overrides": [],
    "num_gpus": "0",
    "num_nodes": 1,
    "gpus_per_node": 0,
    "gpu_type": "nvidia.com/gpu",
    "workspace_pvc": "feedworks-workspace",
    "secret_name": "feedworks-tasks",
    "node_selector": {},
    "gpu_node_selector": {},
    "tolerations": [],
}


compile_once = functools.cache(compile_pipeline)


def run_id(api: KfpStub, timeout_s: float = 30.0) -> str:
    return upload_and_run(Api(api.address, timeout_s), "recochain", Place("exp"), DEFAULTS)


def refusal(api: KfpStub, timeout_s: float = 30.0) -> str:
    with pytest.raises(FeedworksError) as caught:
        run_id(api, timeout_s)
    (line,) = str(caught.value).splitlines()
    assert "<html" not in line
    return line


def usage_error(*words: str) -> str:
    result = CliRunner().invoke(submit, ["recochain", "--host", "http://127.0.0.1:9", *words])
    assert result.exit_code == 2
    return result.output


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of kfp keeps settings in the home folder; a pipeline is compiled once for all tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("feedworks.cli.uploading.compile_pipeline", compile_once)


def test_submit_uploads_the_committed_bytes_and_starts_a_run(feedworks: Command, tmp_path: Path) -> None:
    words = ["submit", "recochain", "--data", "/workspace/events", "--preset", "small", "--gpus", "1"]
    words += ["--gpu-type", "nvidia.com/mig-3g.40gb", "--workspace-pvc", "shared", "--secret", "tokens"]
    words += ["--cpu", "16", "--memory", "128Gi"]
    words += ["--gpu-node-selector", "gpu=h100", "--node-selector", "kubernetes.io/arch=amd64"]
    words += ["--toleration", "nvidia.com/gpu:NoSchedule", "--toleration", "team=recsys"]
    words += ["--data-version", "7", "--set", "seed=3", "--service-account", "feedworks-pipeline"]
    with kfp_stub() as api:
        result = feedworks(*words, "--host", api.address, "--experiment", "exp", FEEDWORKS_KFP_TOKEN="t0")
        assert result.returncode == 0, result.stderr
    assert api.tokens == {"Bearer t0"}
    assert api.packages == [("recochain", COMPILED.read_bytes())]
    assert api.experiments == ["exp"]
    (run,) = api.runs
    assert run["experiment_id"] == "e-exp"
    assert run["service_account"] == "feedworks-pipeline"
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v-recochain"}
    assert run["runtime_config"]["parameters"] == {
        "source": "/workspace/events",
        "data_version": "7",
        "preset": "small",
        "overrides": ["seed=3"],
        "num_gpus": "1",
        "num_nodes": 1,
        "gpus_per_node": 0,
        "gpu_type": "nvidia.com/mig-3g.40gb",
        "model_cpu": "16",
        "model_memory": "128Gi",
        "workspace_pvc": "shared",
        "secret_name": "tokens",
        "node_selector": {"kubernetes.io/arch": "amd64"},
        "gpu_node_selector": {"gpu": "h100"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "recsys"},
        ],
    }
    assert result.stdout.splitlines()[-1] == f"started run run-1 of recochain at {api.address}"


def test_options_have_the_defaults_that_all_pipelines_share(feedworks: Command) -> None:
    import yaml

    with kfp_stub() as api:
        result = feedworks("submit", "ksa", "--host", api.address)
        assert result.returncode == 0, result.stderr
    spec = next(yaml.safe_load_all((COMPILED.parent / "ksa.yaml").read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    sent = api.runs[0]["runtime_config"]["parameters"]
    defaults = {name: parameter["defaultValue"] for name, parameter in parameters.items()}
    assert sent == DEFAULTS
    assert defaults == DEFAULTS | {"model_cpu": "2", "model_memory": "16Gi"}
    assert api.tokens == {None}


def test_submitting_again_adds_one_version_per_content() -> None:
    with kfp_stub() as api:
        for _ in range(3):
            run_id(api)
    first, second = api.packages  # the pipeline itself, then one version named by its bytes
    assert first[1] == second[1] == COMPILED.read_bytes()
    assert len(api.runs) == 3
    assert api.experiments == ["exp"]
    versions = [run["pipeline_version_reference"]["pipeline_version_id"] for run in api.runs]
    assert versions == ["v-recochain", f"v-{second[0]}", f"v-{second[0]}"]


def test_a_pipeline_that_another_submit_has_just_made_is_used() -> None:
    with kfp_stub() as api:
        api.packages, api.late = [("recochain", b"")], 1
        api.wrong = {"/pipelines/upload?": (409, ""), "POST /apis/v2beta1/pipelines/upload": (409, "{}")}
        assert "does not have it; try again" in refusal(api)
        del api.wrong["POST /apis/v2beta1/pipelines/upload"]
        api.looks = 0
        assert run_id(api) == "run-1"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, '{"message": "who are you"}', "refused: 401 who are you; log in: put a token"),
        (
            403,
            '{"error_message": "no right to do this"}',
            "refused: 403 no right to do this; ask for the right",
        ),
        (404, "<html>nothing here</html>", "refused: 404; check --host: a path may be missing"),
        (302, "", "refused: 302"),
        (500, '{"error_message": "no database"}', "failed: 500 no database; try again"),
        (503, "<html>no upstream</html>", "failed: 503; try again"),
    ],
)
@pytest.mark.parametrize("asked", ["GET /apis/v2beta1/healthz", "POST /apis/v2beta1/runs"])
def test_a_refusal_is_one_line(status: int, body: str, said: str, asked: str) -> None:
    with kfp_stub() as api:
        api.wrong = {asked: (status, body)}
        assert said in refusal(api)
    assert api.runs == []


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (
            "<!DOCTYPE html><title>Log in</title>",
            "answers with a web page, perhaps a login; check --host, put a",
        ),
        ("[]", "no Kubeflow Pipelines API answers at"),
        ("hello", "no Kubeflow Pipelines API answers at"),
    ],
)
def test_a_server_of_another_kind_is_told(page: str, said: str) -> None:
    with kfp_stub() as api:
        api.page = page
        assert said in refusal(api)


def test_a_page_in_the_middle_starts_nothing_and_an_earlier_schedule_stays() -> None:
    """As a gateway answers that asks for a login again: with 200."""
    with kfp_stub() as api:
        for asked in ("GET /apis/v2beta1/pipelines", "/upload", "/versions", "experiments", "POST", "/runs"):
            for body in ("<html>log in</html>", '{"run_id": "r', "[]", "null"):
                api.wrong = {f"{asked}": (200, body)}
                assert "no Kubeflow Pipelines API answers at" in refusal(api)
        api.wrong = {"POST /apis/v2beta1/runs": (200, "{}")}
        assert "tells no id of the run" in refusal(api)
        api.wrong = {}
        schedule = functools.partial(
            upload_and_schedule, Api(api.address), "recochain", Place("exp"), DEFAULTS
        )
        assert schedule(cron="0 0 3 * * *") == "s1"
        for body in ("<html>log in</html>", "{}"):
            api.wrong = {"POST /apis/v2beta1/recurringruns": (200, body)}
            with pytest.raises(FeedworksError):
                schedule(cron="0 0 4 * * *")
        assert list(api.schedules) == ["s1"]


def test_an_error_that_breaks_off_tells_its_status() -> None:
    with kfp_stub() as api:
        api.wrong, api.cut = {"healthz": (500, '{"error_message": "x"}')}, 10
        assert "failed: 500; try again" in refusal(api)


def test_a_token_stays_with_the_host_that_it_was_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDWORKS_KFP_TOKEN", "t0\n")
    with kfp_stub() as other, kfp_stub() as api:
        api.elsewhere = f"{other.address}/login"
        Api(api.address).get("/apis/v2beta1/healthz")
    assert api.tokens == {"Bearer t0"}
    assert other.tokens == {None}


@pytest.mark.parametrize("token", ["secret\nmore", "secr\u2026et"])
def test_a_token_that_is_none_is_not_repeated(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("FEEDWORKS_KFP_TOKEN", token)
    with kfp_stub() as api:
        line = refusal(api)
    assert line.startswith("$FEEDWORKS_KFP_TOKEN holds characters that no token has")
    assert api.tokens == set()


@pytest.mark.parametrize("asked", ["GET /apis/v2beta1/healthz", "POST /apis/v2beta1/runs"])
def test_a_server_that_does_not_answer_in_time_is_told(asked: str) -> None:
    with kfp_stub() as api:
        api.slow_s = {asked: 3.0}
        start_s = time.monotonic()
        assert "no Kubeflow Pipelines API answers at" in refusal(api, timeout_s=0.5)
        assert time.monotonic() - start_s < 2.5 + 3


def test_an_error_is_one_line_of_the_command(feedworks: Command) -> None:
    with kfp_stub() as api:
        api.wrong = {"/runs": (403, '{"error": "no right to do this"}')}
        refused = feedworks("submit", "recochain", "--host", api.address)
    unreachable = feedworks("submit", "recochain", "--host", "http://127.0.0.1:9")
    assert refused.returncode == unreachable.returncode == 1
    assert len(refused.stderr.splitlines()) == len(unreachable.stderr.splitlines()) == 1
    assert "refused: 403 no right to do this" in refused.stderr
    assert unreachable.stderr.startswith("feedworks: no Kubeflow Pipelines API answers at")


@pytest.mark.parametrize("host", ["http://", "http://a b:1", "http://[", "http://x:y"])
def test_an_address_that_is_none_is_told(host: str) -> None:
    with pytest.raises(FeedworksError, match=r"no Kubeflow Pipelines API answers at .*; check --host"):
        Api(host).get("/apis/v2beta1/healthz")


def test_a_wrong_setting_is_not_sent(feedworks: Command) -> None:
    with kfp_stub() as api:
        result = feedworks("submit", "recochain", "--host", api.address, "--set", "nonsense=1")
        relative = feedworks("submit", "recochain", "--host", api.address, "--data", "events")
        bucket = feedworks("submit", "recochain", "--host", api.address, "--data", "s3://bucket/events")
        lone = feedworks("submit", "recochain", "--host", api.address, "--gpus-per-node", "8")
    assert result.returncode == relative.returncode == bucket.returncode == lone.returncode == 1
    assert "--data s3://bucket/events: tasks read folders only" in bucket.stderr
    assert (
        "--gpus-per-node is for several machines, --nodes over 1; one machine takes --gpus 8" in lone.stderr
    )
    assert "unknown setting 'nonsense'" in result.stderr
    assert (
        "--data events: the tasks run elsewhere; give a path that they see, /workspace/events"
        in relative.stderr
    )
    assert api.packages == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu-type", "h100"], "expected a resource of a node, such as nvidia.com/gpu"),
        (["--gpu-type", ""], "expected a resource of a node"),
        (["--gpus", "-1"], "-1"),
        (["--workspace-pvc", "My_Claim"], "expected a name of Kubernetes"),
        (["--secret", ""], "expected a name of Kubernetes"),
        (["--cpu", "0.5"], "expected whole cores or thousandths"),
        (["--memory", "64"], "expected a size with its unit"),
        (["--node-selector", "gpu"], "'gpu' is no label KEY=VALUE"),
        (["--node-selector", "gpu=a", "--node-selector", "gpu=b"], "gpu is given twice"),
        (["--gpu-node-selector", "=h100"], "is no label KEY=VALUE"),
        (["--toleration", "nvidia.com/gpu:Never"], "'Never' is none of NoSchedule"),
        (["--toleration", ":NoSchedule"], "is no taint KEY[=VALUE][:EFFECT]"),
        (["--cron", "* * *"], "expected five fields"),
        (["--cron", "0 0 3 * * *"], "expected five fields"),
        (["--cron", "0 24 * * *"], "'24' is no hour: expected numbers from 0 to 23"),
        (["--cron", "0 3 * * 1;2"], "is no weekday"),
        (["--cron", "*/0 3 * * *"], "is no minute"),
        (["--cron", "0 9-5 * * *"], "'9-5' is no hour"),
        (["--cron", "0 3 1,,2 * *"], "'1,,2' is no day"),
        (["--cron", "0 3 * MAI *"], "'MAI' is no month"),
        (["--cron", "0 3 * * MON-"], "'MON-' is no weekday"),
        (["--cron", "0 3 * * *", "--wait"], "--wait follows one run"),
        (["--patience", "0"], "patience"),
    ],
)
def test_a_wrong_option_is_told(words: list[str], said: str) -> None:
    assert said in " ".join(usage_error(*words).split())


def test_a_schedule_takes_the_place_of_an_earlier_one(feedworks: Command) -> None:
    with kfp_stub() as api:
        schedule = ["submit", "recochain", "--host", api.address, "--cron"]
        first = feedworks(*schedule, "0 3 * * *")
        assert first.returncode == 0, first.stderr
        assert first.stdout.splitlines()[-1].endswith("0 0 3 * * *, recurring run s1")
        again = feedworks(*schedule, "*/30 6-8,20 * JAN MON-fri/2", "--data-version", "fixed")
        assert again.returncode == 0, again.stderr
        (kept,) = api.schedules.values()
        assert kept["recurring_run_id"] == "s2"
        assert kept["trigger"] == {"cron_schedule": {"cron": "0 */30 6-8,20 * JAN MON-fri/2"}}
        assert (kept["mode"], kept["max_concurrency"], kept["no_catchup"]) == ("ENABLE", 1, True)
        assert kept["runtime_config"]["parameters"]["data_version"] == "fixed"
        assert kept["pipeline_version_reference"]["pipeline_id"] == "p1"
    assert api.runs == []


def test_each_run_of_a_schedule_reads_the_data_anew_and_a_refused_one_keeps_the_earlier(
    feedworks: Command,
) -> None:
    with kfp_stub() as api:
        assert feedworks("submit", "mari", "--host", api.address, "--cron", "0 3 * * *").returncode == 0
        (made,) = api.schedules.values()
        assert made["runtime_config"]["parameters"]["data_version"] == "[[CurrentTime]]"
        api.wrong = {"POST /apis/v2beta1/recurringruns": (400, '{"error_message": "bad cron"}')}
        with pytest.raises(FeedworksError, match="400 bad cron"):
            upload_and_schedule(Api(api.address), "mari", Place("feedworks"), DEFAULTS, cron="0 0 4 * * *")
        assert list(api.schedules) == ["s1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "their.py:build", "--sides", "/workspace/sides.json"], "--model their.py"),
        (["--model", "/workspace/their.py:build", "--sides", "sides.json"], "--sides sides.json"),
    ],
)
def test_a_model_of_this_machine_is_not_sent(feedworks: Command, words: list[str], said: str) -> None:
    with kfp_stub() as api:
        result = feedworks("submit", "mari", "--host", api.address, *words)
    assert result.returncode == 2
    assert f"{said}: the tasks run elsewhere; give a path that they see, /workspace/" in result.stderr
    assert api.runs == []


def test_a_model_from_outside_is_named_to_the_tasks(feedworks: Command) -> None:
    words = ["submit", "mari", "--model", "their.package:build", "--sides", "/data/sides.json"]
    with kfp_stub() as api:
        result = feedworks(*words, "--set", "seed=3", "--host", api.address)
        assert result.returncode == 0, result.stderr
    assert api.packages == [("mari", COMPILED.with_name("mari.yaml").read_bytes())]
    assert api.runs[0]["runtime_config"]["parameters"]["overrides"] == [
        "seed=3",
        "outside.model=their.package:build",
        "outside.sides=/data/sides.json",
    ]
