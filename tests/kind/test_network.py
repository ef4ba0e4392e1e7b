"""The edges of the network policies, probed by connections, where the cluster enforces policies at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import OURS, STRANGER, WORK, Models, Say
from .kubectl import apply, kubectl, remove
from .probes import LISTENS, PORT, address_of, connects, start
from .test_services import ready

pytestmark = [pytest.mark.kind, pytest.mark.timeout(900)]

CLIENT = {"feedworks/redis-client": "true"}


@pytest.fixture(scope="module")
def probes(models: Models, listening: str) -> Iterator[None]:
    """Pods that probe: in the gateway's namespace, in a stranger's, and in that of the services."""
    start("probe", WORK, {})
    start("probe", STRANGER, {})
    start("probe", OURS, {})
    start("client", OURS, CLIENT)
    yield
    for namespace, names in (
        (WORK, ["probe"]),
        (STRANGER, ["probe", "listens"]),
        (OURS, ["probe", "client"]),
    ):
        remove("pods", *names, namespace=namespace)


@pytest.fixture(scope="module")
def enforced(probes: None, listening: str, left_out: Say) -> None:
    """Skip where a policy of our own, which denies everything, denies nothing."""
    assert connects(STRANGER, "probe", listening, PORT)
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nobody", "namespace": STRANGER},
        "spec": {"podSelector": {"matchLabels": LISTENS}, "policyTypes": ["Ingress"]},
    }
    apply([policy])
    try:
        tries = [connects(STRANGER, "probe", listening, PORT) for _ in range(3)]
    finally:
        remove("networkpolicy", "nobody", namespace=STRANGER)
    if all(tries):
        left_out("network policies: they are applied, but this cluster's CNI does not enforce any")
        pytest.skip("this cluster's CNI does not enforce network policies")


@pytest.mark.usefixtures("enforced")
def test_a_service_hears_the_gateway_and_no_stranger() -> None:
    ready("feedworks-recochain")
    address = address_of(OURS, "app.kubernetes.io/name=recochain")
    assert connects(WORK, "probe", address, 3000)
    assert not connects(STRANGER, "probe", address, 3000)
    assert not connects(OURS, "probe", address, 3000)


@pytest.mark.usefixtures("enforced")
def test_redis_hears_its_clients_alone() -> None:
    kubectl("rollout", "status", "statefulset/redis", "--timeout=180s", namespace=OURS, within_s=200)
    address = address_of(OURS, "app.kubernetes.io/name=redis")
    assert connects(OURS, "client", address, 6379)
    assert not connects(OURS, "probe", address, 6379)
    assert not connects(WORK, "probe", address, 6379)


@pytest.mark.usefixtures("enforced")
def test_nothing_leaves_the_namespace(listening: str) -> None:
    assert connects(WORK, "probe", listening, PORT)
    assert not connects(OURS, "probe", listening, PORT)
    assert not connects(OURS, "client", listening, PORT)
