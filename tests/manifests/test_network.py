"""Exactly the edges that are needed, in a cluster that keeps to network policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from .network import edges, pods, selectors_without_pods
from .rendered import Object, of_kind, overlay, render

PAPERS = ("recochain", "mari", "ocarm", "ksa")
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
KFP_PORTS = ("8080", "8333", "8887", "8888", "9000")

SERVICES = {(role, paper, "http") for role in ("gateway:", "monitoring:") for paper in PAPERS}
REDIS = {(name, "redis", "redis") for name in ("ocarm", "features", "features-materialize")}
FEATURES = {("features-client:", "features", "http"), ("monitoring:", "features", "metrics")}
PIPELINES = {("pipelines", "pipelines:", port) for port in KFP_PORTS} | {
    ("pipelines", block, port) for block in PRIVATE for port in ("443", "6443")
}
BASE = SERVICES | REDIS | FEATURES | PIPELINES
TRAINING = {("training", "training", "*")}
RAY = {("ray", "ray", "*"), ("operators:", "ray", "dashboard")}


def without_dns(objects: list[Object]) -> set[tuple[str, str, str]]:
    """All edges but those to the name server, which every pod must have."""
    found = edges(objects)
    assert {source for source, target, port in found if (target, port) == ("dns:", "53")} == set(
        pods(objects)
    )
    return {each for each in found if each[1] not in ("dns:", "169.254.20.10/32")}


def test_edges_of_kind() -> None:
    assert without_dns(overlay("kind")) == BASE


def test_edges_of_gpu() -> None:
    assert without_dns(overlay("gpu")) == BASE | TRAINING


def test_edges_with_every_component(whole: Path) -> None:
    assert without_dns(render(whole)) == BASE | TRAINING | RAY


def test_selectors_have_pods(objects: list[Object]) -> None:
    assert selectors_without_pods(objects) == []


def _policy(objects: list[Object], name: str) -> Object:
    (found,) = [each for each in of_kind(objects, "NetworkPolicy") if each["metadata"]["name"] == name]
    spec: Object = found["spec"]
    return spec


def test_a_selector_without_pods_is_seen() -> None:
    objects = overlay("kind")
    _policy(objects, "redis")["podSelector"]["matchLabels"]["app.kubernetes.io/component"] = "rediss"
    assert any("no pod has" in each for each in selectors_without_pods(objects))


def test_a_peer_without_pods_a_port_and_a_role_that_are_not_there_are_seen() -> None:
    objects = overlay("kind")
    _policy(objects, "redis")["ingress"][0]["from"][0]["podSelector"]["matchLabels"] = {"no": "pod"}
    _policy(objects, "features")["ingress"][1]["ports"][0]["port"] = "metric"
    _policy(objects, "services")["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] = {"name": "x"}
    found = "\n".join(selectors_without_pods(objects))
    for said in (
        "no pod has {'matchLabels': {'no': 'pod'}}",
        "no container has a port metric",
        "not documented",
    ):
        assert said in found


def test_an_edge_needs_both_sides_and_no_policy_means_no_test() -> None:
    objects = overlay("kind")
    _policy(objects, "redis-clients")["egress"] = []
    assert without_dns(objects) == BASE - REDIS
    objects = [each for each in overlay("kind") if each["metadata"]["name"] != "default-deny"]
    with pytest.raises(AssertionError, match="no policy keeps its"):
        edges(objects)
