"""Services of packaged models: ready, right answers by a forwarded port, refusals, and back after a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedworks.papers import PAPERS
from feedworks.serving.server import MODEL_DIR, running_server

from .conftest import OURS, Models
from .kubectl import ClusterError, Object, explain, forwarded, items, kubectl, wait_for
from .papers import Papers
from .tasks import ROOT

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1200)]

PATHS = {"recochain": "/recommend", "mari": "/score", "ocarm": "/predict", "ksa": "/v1/completions"}
READY_S = 300.0


def ready(deployment: str) -> None:
    """Wait until a Deployment has its pods, however long it waited for what they need."""
    words = ["wait", "--for=condition=Available", f"deployment/{deployment}", f"--timeout={READY_S:.0f}s"]
    done = kubectl(*words, namespace=OURS, within_s=READY_S + 30, check=False)
    if done.returncode:
        name = deployment.removeprefix("feedworks-")
        raise ClusterError(f"{done.stderr}\n{explain(OURS, f'app.kubernetes.io/name={name}')}")


def demo_answers(address: str, name: str, data: Path) -> list[Any]:
    """What a service says to the requests of the paper's demo."""
    answers = []

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answers.append(answered(address, path, body))
        return answers[-1]

    PAPERS[name].part("demo").ask(post, data)
    return answers


def answered(address: str, path: str, body: object) -> dict[str, Any]:
    """The answer to a request that is right."""
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def assert_close(found: Any, expected: Any, path: str = "answer") -> None:
    """Equal but for the last bits of numbers, and for what no two answers share."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for key in set(expected) - {"id", "created"}:
            assert_close(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{path}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("name", PAPERS)
def test_a_service_answers_as_its_model_does_here(
    models: Models, paper: Papers, name: str, tmp_path: Path
) -> None:
    ready(f"feedworks-{name}")
    data = paper(name).data
    with forwarded(OURS, f"service/feedworks-{name}", 80) as address:
        found = demo_answers(address, name, data)
    target = f"feedworks.{name}.service:{PAPERS[name].service}"
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    environment = {MODEL_DIR: str(models[name]), "PYTHONPATH": sources}
    with running_server(target, environment, tmp_path / "log") as address:
        expected = demo_answers(address, name, data)
    if name == "ocarm":
        # Of its two users the second brings no features: there the cluster's service has a store to ask.
        for each in (found, expected):
            each[0]["users"].pop()
    assert_close(found, expected)


@pytest.mark.parametrize("name", PAPERS)
def test_a_bad_request_is_refused(models: Models, name: str) -> None:
    ready(f"feedworks-{name}")
    with (
        forwarded(OURS, f"service/feedworks-{name}", 80) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=60) as client,
    ):
        for content in (b'{"nonsense": 1}', b"not JSON"):
            response = client.post(PATHS[name], content=content, headers={"Content-Type": "application/json"})
            assert response.status_code in (400, 422), response.text
            assert "Traceback" not in response.text
        assert client.get("/readyz").status_code == 200
        assert "python_info" in client.get("/metrics").text or "_total" in client.get("/metrics").text


def pods_of(name: str) -> list[Object]:
    return items("pods", "-l", f"app.kubernetes.io/name={name}", namespace=OURS)


@pytest.mark.parametrize("way", ["killed", "rolled"])
def test_a_pod_that_goes_is_replaced(models: Models, paper: Papers, way: str) -> None:
    name = "recochain"
    ready(f"feedworks-{name}")
    data = paper(name).data
    with forwarded(OURS, f"service/feedworks-{name}", 80) as address:
        before = demo_answers(address, name, data)
    names = {pod["metadata"]["name"] for pod in pods_of(name)}
    if way == "killed":
        kubectl("delete", "pod", *names, "--grace-period=0", "--force", namespace=OURS)
    else:
        kubectl("rollout", "restart", f"deployment/feedworks-{name}", namespace=OURS)

    def fresh() -> list[Object] | None:
        found = [
            pod
            for pod in pods_of(name)
            if pod["metadata"]["name"] not in names
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
        ]
        return found or None

    (pod,) = wait_for(fresh, f"another pod of {name}", within_s=READY_S, namespace=OURS)
    with forwarded(OURS, f"pod/{pod['metadata']['name']}", 3000) as address:
        assert_close(demo_answers(address, name, data), before)
