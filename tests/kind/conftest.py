"""The cluster of $KUBECONFIG with namespaces of the tests; at the end a list of what ran and what did not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedworks import images
from feedworks.papers import PAPERS

from . import server
from .jobs import CLAIM, Workplace
from .kubectl import Object, apply, items, kubectl, remove
from .overlay import NAMESPACE as OURS
from .overlay import SERVICES, apply_overlay, bring_models
from .papers import ALONE, Papers
from .probes import LISTEN, LISTENS, PORT, address_of, connects, start
from .volumes import LABEL, Volumes

WORK = "feedworks-tests"
STRANGER = "feedworks-tests-stranger"
CLAIMS = ("feedworks-workspace", "feedworks-models", "feedworks-features", "feedworks-redis")

Say = Callable[[str], None]
Models = dict[str, Path]

_LEFT_OUT = pytest.StashKey[dict[str, None]]()
_TOLD = pytest.StashKey[list[str]]()
_STARTED_S = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = {}
    config.stash[_TOLD] = []
    config.stash[_STARTED_S] = time.monotonic()


@pytest.fixture(scope="session")
def left_out(pytestconfig: pytest.Config) -> Say:
    """Say what this cluster cannot do; it is listed at the end."""
    said = pytestconfig.stash[_LEFT_OUT]
    return lambda what: said.update({what: None})


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Say:
    """Add lines to the list at the end."""
    return pytestconfig.stash[_TOLD].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [each for word in ("passed", "failed") for each in terminalreporter.stats.get(word, [])]
    ran = [each for each in reports if "tests/kind/" in each.nodeid and each.when == "call"]
    if not ran:
        return
    nodes = ", ".join(
        f"{node['status']['capacity']['cpu']} cores, {node['status']['nodeInfo']['containerRuntimeVersion']}"
        for node in server.nodes()
    )
    terminalreporter.section(f"Kubernetes {server.version()} ({nodes})")
    for each in ran:
        name = each.nodeid.partition("tests/kind/test_")[2].replace(".py::test_", ": ").replace("_", " ")
        terminalreporter.line(f"{each.outcome:>8} {_seconds(terminalreporter, each):6.1f} s  {name}")
    for text in config.stash[_TOLD]:
        terminalreporter.line(text)
    for what in config.stash[_LEFT_OUT]:
        terminalreporter.line(f"left out: {what}")
    terminalreporter.line(f"{(time.monotonic() - config.stash[_STARTED_S]) / 60:.1f} minutes")


def _seconds(terminalreporter: pytest.TerminalReporter, report: pytest.TestReport) -> float:
    """Of a test with what was set up for it."""
    every = [each for found in terminalreporter.stats.values() for each in found]
    return sum(each.duration for each in every if getattr(each, "nodeid", "") == report.nodeid)


@pytest.fixture(scope="session")
def cluster(left_out: Say) -> Iterator[Volumes | None]:
    """Three namespaces of the tests; volumes for their claims where the cluster makes none."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set")
    _require_own_namespaces()
    _require_images()
    if not server.has_image(images.GPU):
        left_out(f"image {images.GPU}: it is not loaded; tasks that run a model ran in {images.CPU}")
    for name in (WORK, STRANGER, OURS):
        apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])
        kubectl("label", "--overwrite", "namespace", name, f"{LABEL}=namespace")
    # As the namespace of a gateway it may ask the services where policies are enforced.
    kubectl("label", "--overwrite", "namespace", WORK, "feedworks/gateway=true")
    volumes = None
    try:
        if not server.makes_volumes():
            left_out("dynamic volumes: there is no default StorageClass; folders of the node stood in")
            volumes = Volumes(WORK, images.CPU)
            volumes.give(WORK, CLAIM)
            for claim in CLAIMS:
                volumes.give(OURS, claim)
        yield volumes
    finally:
        if not os.environ.get("FEEDWORKS_KEEP"):
            _clean(volumes)


def _require_own_namespaces() -> None:
    for each in items("namespaces"):
        name, labels = each["metadata"]["name"], each["metadata"].get("labels", {})
        if name in (WORK, STRANGER, OURS) and LABEL not in labels:
            pytest.exit(f"the cluster of KUBECONFIG has a namespace {name} that is not of these tests", 3)


def _require_images() -> None:
    for image in (images.CPU, images.CPU_SERVE):
        if not server.has_image(image):
            pytest.exit(f"the nodes have no image {image}: make images, and load them into the nodes", 3)


def _clean(volumes: Volumes | None) -> None:
    words = ["--all", "--grace-period=0", "--force", "--wait=false"]
    for name in (OURS, STRANGER):
        kubectl("delete", "deployments,statefulsets,jobs", "--all", namespace=name)
        kubectl("delete", "pods", *words, namespace=name)
        remove("namespace", name)
    remove("pods,jobs,persistentvolumeclaims", "--all", namespace=WORK)
    if volumes is not None:
        volumes.remove()
    remove("namespace", WORK)


@pytest.fixture(scope="session")
def work(cluster: Volumes | None, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A claim that tasks of pipelines share."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": WORK},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    }
    apply([claim])
    place = Workplace(WORK, tmp_path_factory.mktemp("work"), images.CPU)
    place.open()
    return place


@pytest.fixture(scope="session")
def paper(work: Workplace) -> Iterator[Papers]:
    """Runs a paper's pipeline as Jobs, once."""
    papers = Papers(work)
    yield papers
    papers.close()


@pytest.fixture(scope="session")
def manifests(cluster: Volumes | None, left_out: Say) -> list[Object]:
    """The overlay kind; services have no pods yet, as they have no models."""
    return apply_overlay(left_out)


@pytest.fixture(scope="session")
def listening(work: Workplace, left_out: Say) -> str:
    """Address of a pod of a stranger that listens; skips where pods cannot reach each other."""
    start("listens", STRANGER, LISTENS, LISTEN)
    address = address_of(STRANGER, "listens=yes")
    if not connects(WORK, "files", address, PORT):
        left_out("connections between pods: a firewall of this node drops them (Docker's does)")
        pytest.skip("pods cannot reach each other")
    return address


@pytest.fixture(scope="session")
def models(manifests: list[Object], work: Workplace, paper: Papers) -> Models:
    """The packaged model of each paper, here and on the claim of the services, which start with it."""
    paper(ALONE)
    paper.start()
    found = {name: work.bring(paper(name).tasks["package"].outputs["model"]) for name in PAPERS}
    bring_models(found)
    words = ["deployments", "-l", SERVICES, "--replicas=1"]
    kubectl("scale", *words, namespace=OURS)
    return found
