"""Where the pods of a training go: where the pod that launches them was sent, and to the same volume.

So what a pipeline's parameters say of nodes, taints, claim and secret holds for every pod that trains.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from feedworks.distributed.workspace import workspace
from feedworks.task_resources import SECRET_KEYS

# Kubernetes adds these to every pod by itself.
_EVERY_POD = "node.kubernetes.io/"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a pod was told of nodes, volume and secret, as Kubernetes writes it; empty where nothing.

    Attributes:
        node_selector: labels of its node.
        tolerations: of taints.
        claim: name of the volume claim that lies at the shared folder.
        secrets: variables of the environment that come from a secret.
    """

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    claim: str = ""
    secrets: list[dict[str, Any]] = field(default_factory=list)


def own_name() -> str:
    """Return the name of this pod; outside of one, that of the machine."""
    return os.environ.get("KFP_POD_NAME") or socket.gethostname()


def place_of(pod: dict[str, Any] | None) -> Place:
    """Return where a pod was sent.

    Args:
        pod: as the API writes it; None stands for a process outside of the cluster, of which nothing is
            known.
    """
    if pod is None:
        return Place()
    spec = pod["spec"]
    return Place(
        node_selector=spec.get("nodeSelector", {}),
        tolerations=[
            each for each in spec.get("tolerations", []) if not each.get("key", "").startswith(_EVERY_POD)
        ],
        claim=next(_claims(spec), ""),
        secrets=[
            variable
            for container in spec["containers"]
            for variable in container.get("env", [])
            if variable["name"] in SECRET_KEYS and "secretKeyRef" in variable.get("valueFrom", {})
        ],
    )


def _claims(spec: dict[str, Any]) -> Iterator[str]:
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["mountPath"].rstrip("/") == str(workspace()) and mount["name"] in claims:
                yield claims[mount["name"]]
