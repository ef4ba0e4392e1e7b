"""Which pods reach which, by the network policies: what Kubernetes says of them, in few lines.

A pod that a policy of a direction selects has in that direction the edges of all such policies and no others.
An edge inside the namespace needs the egress of the one side and the ingress of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .rendered import Object, Template, name_of, of_kind, templates

# Pods that others make here, by the label that they carry.
FOREIGN = {"pipelines": {"workflows.argoproj.io/workflow": "recochain-x7k2p"}}
# Labels of namespaces, "true" of those that take part, set by whoever runs the cluster: manifests/README.md.
ROLES = {"gateway", "monitoring", "features-client", "pipelines", "operators"}
DNS_PODS = {"k8s-app": "kube-dns"}
Edge = tuple[str, str, str]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes labels; an empty one takes all."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        value = labels.get(each["key"])
        taken = {
            "Exists": value is not None,
            "DoesNotExist": value is None,
            "In": value in each.get("values", []),
            "NotIn": value not in each.get("values", []),
        }[each["operator"]]
        if not taken:
            return False
    return True


def pods(objects: list[Object]) -> dict[str, Template]:
    """The pods of the namespace by name: ours, and those that others make here."""
    found = {each.labels["app.kubernetes.io/name"]: each for each in templates(objects)}
    return found | {name: Template(name, labels, {"containers": []}) for name, labels in FOREIGN.items()}


def edges(objects: list[Object]) -> set[Edge]:
    """(from, to, port) of all connections that the policies allow: `gateway:` and the like are namespaces."""
    there = pods(objects)
    policies = of_kind(objects, "NetworkPolicy")
    found: set[Edge] = set()
    for target, template in there.items():
        inward = list(_rules(policies, template, "Ingress"))
        found |= {
            (f"{role}:", target, port)
            for peer, port in inward
            if (role := _role(peer)) is not None and "podSelector" not in peer
        }
        for source, other in there.items():
            outward = list(_rules(policies, other, "Egress"))
            for port in {port for peer, port in inward if _takes(peer, other)}:
                if any(_takes(peer, template) and _same(port, given) for peer, given in outward):
                    found.add((source, target, port))
    for source, template in there.items():
        for peer, port in _rules(policies, template, "Egress"):
            if "ipBlock" in peer:
                found.add((source, peer["ipBlock"]["cidr"], port))
            elif "namespaceSelector" in peer:
                found.add((source, f"{_role(peer) or 'dns'}:", port))
    return found


def _same(port: str, other: str) -> bool:
    return port == other or "*" in (port, other)


def _takes(peer: Object, template: Template) -> bool:
    """Whether a peer is these pods of the policy's own namespace."""
    alone = "namespaceSelector" not in peer and "podSelector" in peer
    return alone and matches(peer["podSelector"], template.labels)


def _role(peer: Object) -> str | None:
    labels: dict[str, str] = peer.get("namespaceSelector", {}).get("matchLabels", {})
    names = [key.removeprefix("feedworks/") for key, value in labels.items() if value == "true"]
    return names[0] if len(labels) == len(names) == 1 else None


def _rules(policies: list[Object], template: Template, direction: str) -> Iterator[tuple[Object, str]]:
    """(peer, port) that policies allow pods in a direction; `*` is every port."""
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    chosen = [
        each["spec"]
        for each in policies
        if direction in each["spec"]["policyTypes"] and matches(each["spec"]["podSelector"], template.labels)
    ]
    assert chosen, f"{template.owner}: no policy keeps its {direction}"
    for spec in chosen:
        for allowed in spec.get(key, []):
            for port in allowed.get("ports", [{"port": "*"}]):
                for peer in allowed[side]:
                    yield peer, str(port["port"])


def selectors_without_pods(objects: list[Object]) -> list[str]:
    """What is selected and is not there: a policy that takes no pod keeps nothing and allows nothing."""
    labels = [each.labels for each in pods(objects).values()]
    wrong = []
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        rules = [*spec.get("ingress", []), *spec.get("egress", [])]
        peers = [peer for each in rules for peer in (*each.get("from", []), *each.get("to", []))]
        local = [
            peer["podSelector"] for peer in peers if "namespaceSelector" not in peer and "ipBlock" not in peer
        ]
        for selector in (spec["podSelector"], *local):
            if not any(matches(selector, each) for each in labels):
                wrong.append(f"{name_of(policy)}: no pod has {selector}")
        for peer in peers:
            if "namespaceSelector" in peer and _role(peer) not in ROLES and not _is_dns(peer):
                wrong.append(f"{name_of(policy)}: namespaces {peer['namespaceSelector']} are not documented")
        wrong += [f"{name_of(policy)}: {each}" for each in _ports_without_containers(spec, objects)]
    return wrong


def _is_dns(peer: Object) -> bool:
    return peer["namespaceSelector"] == {} and peer.get("podSelector") == {"matchLabels": DNS_PODS}


def _ports_without_containers(spec: Object, objects: list[Object]) -> Iterator[str]:
    """Named ports that no container of the pods at the receiving end has."""
    for key in ("ingress", "egress"):
        for allowed in spec.get(key, []):
            ends = (
                [spec["podSelector"]]
                if key == "ingress"
                else [p.get("podSelector", {}) for p in allowed["to"]]
            )
            receivers = [t for t in templates(objects) if any(matches(end, t.labels) for end in ends)]
            names = {port["name"] for t in receivers for c in t.containers for port in c.get("ports", [])}
            for port in allowed.get("ports", []):
                if isinstance(port["port"], str) and port["port"] not in names:
                    yield f"no container has a port {port['port']}"
