"""What a cluster cannot give: an image, a GPU, room on a volume. Each is one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feedworks import images
from feedworks.cli.following import with_mend
from feedworks.distributed.pods import Waiting, waiting

from ..pipelines.runs import SETTINGS
from . import server
from .conftest import WORK, Say
from .jobs import Workplace
from .kubectl import kubectl, remove, wait_for
from .papers import Papers
from .tasks import changed
from .volumes import Volumes

pytestmark = [pytest.mark.kind, pytest.mark.timeout(900)]

NOWHERE = "127.0.0.1:1/feedworks/nothing:0"
SMALL = Path("/small")
SMALL_MIB = 8


def pods(work: Workplace, job: str) -> list[Any]:
    """The pods of a Job as the product's own client reads them."""
    from kubernetes import client, config

    found = client.Configuration()
    config.load_kube_config(client_configuration=found)
    with client.ApiClient(found) as api:
        every: list[Any] = (
            client.CoreV1Api(api).list_namespaced_pod(work.namespace, label_selector=f"job-name={job}").items
        )
    return every


@pytest.fixture
def told(work: Workplace) -> Iterator[Callable[..., Waiting]]:
    """Start a Job, return why it waits in the words of the product, remove it."""
    started = []

    def run(name: str, image: str, reason: str, resources: dict[str, Any] | None = None) -> Waiting:
        started.append(name)
        work.start(name, work.pod(image, ["true"], resources=resources))

        def why() -> Waiting | None:
            found = waiting(pods(work, name))
            return found if found and reason in found.why else None

        return wait_for(why, reason, within_s=120, namespace=work.namespace, selector=f"job-name={name}")

    yield run
    for name in started:
        remove("job", name, namespace=work.namespace)


def test_a_missing_image_is_told_with_its_name(told: Callable[..., Waiting]) -> None:
    found = told("no-image", NOWHERE, "Err")
    assert found.image
    assert f"image {NOWHERE} cannot be had: " in str(found)
    assert with_mend(found.why).endswith("; build and push the images that the pipeline names")


def test_a_gpu_that_no_node_has_is_told(told: Callable[..., Waiting], left_out: Say) -> None:
    if server.num_gpus():
        left_out("a GPU asked for in vain: the nodes have some")
        pytest.skip("the nodes have GPUs")
    found = told("no-gpu", images.CPU, "nvidia.com/gpu", {"limits": {"nvidia.com/gpu": "1"}})
    assert not found.image
    assert "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu" in str(found)
    assert "no node has so many free GPUs of that type; see --gpus, --gpu-type" in with_mend(found.why)
    words = ["get", "pods", "-l", "job-name=no-gpu", "-o", "jsonpath={.items[*].status.phase}"]
    assert kubectl(*words, namespace=WORK).stdout == "Pending"


def test_a_full_claim_is_told_and_nothing_is_half_written(
    cluster: Volumes | None, work: Workplace, paper: Papers, left_out: Say
) -> None:
    if len(server.nodes()) != 1:
        left_out("a full claim: the small volume is a folder of a node, and there is more than one")
        pytest.skip("more than one node")
    task = paper("recochain").tasks["prepare-sequences"]
    command = changed(task, SMALL / "out", SETTINGS["recochain"])
    with (cluster or Volumes(WORK, images.CPU)).small(WORK, "small", SMALL_MIB):
        try:
            claims = {str(SMALL): "small"}
            fill = f"fallocate -l $(($(stat -f -c '%a * %S' {SMALL}) - 16384)) {SMALL}/ballast"
            work.run("fills", images.CPU, ["sh", "-ec", fill], claims=claims)
            work.start("full", work.pod(task.image, command, claims=claims))
            succeeded, said = work.end("full", within_s=180)
            assert not succeeded
            error = said.strip().splitlines()[-1]
            assert error.startswith("feedworks.errors.SpaceError: no space left on the volume of /small/out/")
            for word in ("MiB free of 8.0", "make room there and start again", "nothing was written to"):
                assert word in error
            found = work.run("lists", images.CPU, ["find", str(SMALL), "-type", "f"], claims=claims)
            # The report of the gate, written before, is whole; of the sequences there is nothing.
            assert set(found.split()) <= {f"{SMALL}/ballast", f"{SMALL}/out/validation"}
            room = ["sh", "-ec", f'rm {SMALL}/ballast; exec "$@"', "sh", *command]
            work.run("room", task.image, room, claims=claims)
            found = work.run(
                "sums", images.CPU, ["sh", "-ec", _sums(SMALL / "out" / "sequences")], claims=claims
            )
            assert found == work.sh(_sums(task.outputs["sequences"]))
        finally:
            remove("jobs", "fills", "full", "lists", "room", "sums", namespace=WORK)


def _sums(folder: Path) -> str:
    return f"cd {folder}; find . -type f | sort | xargs sha256sum"
