"""The objects of manifests/overlays/kind as this cluster can take them; what had to be changed is told."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedworks import images

from ..manifests.rendered import HOW_TO_GET, kustomize, of_kind, overlay, templates
from . import server
from .jobs import NOBODY
from .kubectl import ClusterError, Object, apply, get, items, kubectl, remove

NAMESPACE = "feedworks"
# Earlier versions of the API with the same fields as those of the manifests.
EARLIER = {
    "autoscaling/v2": "autoscaling/v2beta2",
    "batch/v1": "batch/v1beta1",
    "policy/v1": "policy/v1beta1",
}
SERVICES = "app.kubernetes.io/component=service"
REDIS_STAND_IN = "feedworks/redis-stand-in:debian"

Say = Callable[[str], None]


def apply_overlay(say: Say) -> list[Object]:
    """Apply the overlay, services with no pods; return its objects as they were applied.

    Raises:
        ClusterError: there is no kustomize, or the server refuses an object.
    """
    if kustomize() is None:
        raise ClusterError(HOW_TO_GET)
    objects = known(overlay("kind"), say)
    stand_in_for_redis(objects, say)
    # Names of services are addresses only after their services are there.
    apply(of_kind(objects, "Namespace", "Service"))
    if not has_dns():
        say("cluster DNS: there is none; the address of Redis stood in /etc/hosts of its clients")
        name_in_hosts(objects, "redis")
    key, _, component = SERVICES.partition("=")
    for each in of_kind(objects, "Deployment"):
        if each["metadata"]["labels"].get(key) == component:
            each["spec"]["replicas"] = 0
    password = {"password": secrets.token_hex(12)}
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": password}
    apply([secret | {"metadata": {"name": "feedworks-redis", "namespace": NAMESPACE}}, *objects])
    return objects


def known(objects: list[Object], say: Say) -> list[Object]:
    """Objects in versions that the server has; those of kinds that it knows in none are left out."""
    found = []
    for each in objects:
        asked = each["apiVersion"]
        for version in (asked, EARLIER.get(asked, asked)):
            if each["kind"] in server.kinds(version):
                if version != asked:
                    say(f"{asked} {each['kind']}: this server has none; {version} was applied")
                found.append(each | {"apiVersion": version})
                break
        else:
            say(f"{asked} {each['kind']}: this server knows none; it was not applied")
    return found


def stand_in_for_redis(objects: list[Object], say: Say) -> None:
    """Take Debian's Redis where the nodes have not the image of the manifests but that one."""
    for template in templates(of_kind(objects, "StatefulSet")):
        for container in template.containers:
            image = container["image"]
            if not server.has_image(image) and server.has_image(REDIS_STAND_IN):
                say(f"image {image}: the nodes have it not; Debian's Redis stood in ({REDIS_STAND_IN})")
                container["image"] = REDIS_STAND_IN


def has_dns() -> bool:
    """Whether the cluster answers to names of services."""
    return bool(items("services", "-l", "k8s-app=kube-dns", namespace="kube-system"))


def name_in_hosts(objects: list[Object], service: str) -> None:
    """Give the clients of Redis its name by their /etc/hosts."""
    address: Any = get("service", service, namespace=NAMESPACE)["spec"]["clusterIP"]
    for template in templates(objects):
        if "feedworks/redis-client" in template.labels:
            template.spec["hostAliases"] = [{"ip": address, "hostnames": [service]}]


def bring_models(models: dict[str, Path]) -> None:
    """Copy packaged models to the claim that services read, through a pod that mounts it."""
    container = {
        "name": "main",
        "image": images.CPU,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": dict(NOBODY),
        "containers": [container],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "feedworks-models"}}],
    }
    metadata = {"name": "models", "namespace": NAMESPACE}
    apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
    kubectl(
        "wait", "--for=condition=Ready", "pod/models", "--timeout=120s", namespace=NAMESPACE, within_s=150
    )
    for name, folder in models.items():
        kubectl("cp", str(folder), f"{NAMESPACE}/models:/models/{name}")
    remove("pod", "models", namespace=NAMESPACE)
