"""Every rule holds for every rendered object, and is seen to fail once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .policies import RULES
from .rendered import Object, of_kind, overlay

Change = Callable[[list[Object]], object]


@pytest.mark.parametrize("name", sorted(RULES))
def test_all_objects_keep_the_rule(objects: list[Object], name: str) -> None:
    assert RULES[name](objects) == []


def _one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def _pod(objects: list[Object]) -> Object:
    spec: Object = _one(objects, "Deployment", "feedworks-mari")["spec"]["template"]["spec"]
    return spec


def _container(objects: list[Object]) -> Object:
    container: Object = _pod(objects)["containers"][0]
    return container


def _first(objects: list[Object]) -> Object:
    """A container of the start, in a job: rules reach it too."""
    job = _one(objects, "CronJob", "features-materialize")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container: Object = job["initContainers"][0]
    return container


def _security(objects: list[Object], **changes: Any) -> None:
    _container(objects)["securityContext"].update(changes)


def _rule_of_role(objects: list[Object], **changes: Any) -> None:
    role = _one(objects, "Role", "feedworks-pipeline")
    role["rules"][0].update(changes)


def _volume(objects: list[Object], **source: Any) -> None:
    _pod(objects)["volumes"].append({"name": "more", **source})


def _drop(kind: str, name: str) -> Change:
    return lambda objects: objects.remove(_one(objects, kind, name))


def _cluster_role(objects: list[Object]) -> None:
    rights = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    objects.append({"kind": "ClusterRole", "metadata": {"name": "wide"}, "rules": [rights]})


def _secret(objects: list[Object]) -> None:
    objects.append(
        {"kind": "Secret", "metadata": {"name": "feedworks-redis"}, "stringData": {"password": "x"}}
    )


def _set(path: str, value: Any) -> Change:
    """Change a pod's spec of a service: `path` by dots, `value` None to remove."""

    def change(objects: list[Object]) -> None:
        *way, last = path.split(".")
        target: Any = _one(objects, "Deployment", "feedworks-mari")
        for step in way:
            target = target[int(step)] if step.isdigit() else target[step]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return change


POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"

BROKEN: list[tuple[str, str, Change]] = [
    ("non_root", "runAsUser", lambda o: _security(o, runAsUser=0)),
    ("non_root", "runAsNonRoot", lambda o: _security(o, runAsNonRoot=False)),
    ("non_root", "runAsGroup", _set(f"{POD}.securityContext.runAsGroup", None)),
    ("non_root", "container apply", lambda o: _first(o)["securityContext"].update(runAsUser=0)),
    ("no_rights_of_the_kernel", "privileged", lambda o: _security(o, privileged=True)),
    ("no_rights_of_the_kernel", "allowPrivilege", lambda o: _security(o, allowPrivilegeEscalation=True)),
    ("no_rights_of_the_kernel", "capabilities", lambda o: _security(o, capabilities={"drop": ["NET_RAW"]})),
    (
        "no_rights_of_the_kernel",
        "capabilities",
        lambda o: _security(o, capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    ),
    ("seccomp", "seccompProfile", _set(f"{POD}.securityContext.seccompProfile", None)),
    ("seccomp", "seccompProfile", lambda o: _security(o, seccompProfile={"type": "Unconfined"})),
    ("read_only_root", "may be written", lambda o: _security(o, readOnlyRootFilesystem=False)),
    ("nothing_of_the_host", "hostPath", lambda o: _volume(o, hostPath={"path": "/"})),
    ("nothing_of_the_host", "hostNetwork", _set(f"{POD}.hostNetwork", True)),
    ("nothing_of_the_host", "hostPort", lambda o: _container(o)["ports"][0].update(hostPort=80)),
    ("resources", "no limits of memory", lambda o: _container(o)["resources"]["limits"].pop("memory")),
    ("resources", "no requests of cpu, memory", lambda o: _first(o)["resources"].pop("requests")),
    ("resources", "has no limit", lambda o: _volume(o, emptyDir={})),
    (
        "pinned_images",
        "no fixed tag",
        _set(f"{CONTAINER}.image", "feedworks/python-cpu-serve:latest"),
    ),
    (
        "pinned_images",
        "no fixed tag",
        _set(f"{CONTAINER}.image", "host:5000/feedworks/python-cpu"),
    ),
    ("pinned_images", "imagePullPolicy", lambda o: _container(o).update(imagePullPolicy="Always")),
    ("no_token", "token", _set(f"{POD}.automountServiceAccountToken", None)),
    ("no_token", "default account", _set(f"{POD}.serviceAccountName", None)),
    (
        "no_token",
        "ServiceAccount/feedworks-service",
        lambda o: _one(o, "ServiceAccount", "feedworks-service").pop("automountServiceAccountToken"),
    ),
    ("probed", "no readinessProbe", lambda o: _container(o).pop("readinessProbe")),
    ("probed", "StatefulSet/redis", lambda o: _redis(o).pop("livenessProbe")),
    ("drained", "no pause", lambda o: _container(o).pop("lifecycle")),
    ("drained", "too little time", _set(f"{POD}.terminationGracePeriodSeconds", 15)),
    ("scaled_and_budgeted", "no autoscaler", _drop("HorizontalPodAutoscaler", "feedworks-mari")),
    ("scaled_and_budgeted", "disruption budget", _drop("PodDisruptionBudget", "feedworks-mari")),
    ("scaled_and_budgeted", "which there is not", _drop("Deployment", "feedworks-mari")),
    ("scaled_and_budgeted", "replicas", _set("spec.replicas", 3)),
    ("scaled_and_budgeted", "not spread", _set(f"{POD}.topologySpreadConstraints", None)),
    ("scalers_can_be_reached", "waits for 1.4 cores", _set(f"{CONTAINER}.resources.requests.cpu", "2")),
    ("references", "no PersistentVolumeClaim", _drop("PersistentVolumeClaim", "feedworks-models")),
    ("references", "no ServiceAccount", _drop("ServiceAccount", "feedworks-service")),
    ("references", "no ServiceAccount feedworks-pipeline", _drop("ServiceAccount", "feedworks-pipeline")),
    ("references", "no Role", _drop("Role", "feedworks-pipeline")),
    ("references", "no ConfigMap", lambda o: _volume(o, configMap={"name": "nothing"})),
    ("references", "no Secret", lambda o: _volume(o, secret={"secretName": "nothing"})),
    ("references", "no volume", lambda o: _container(o)["volumeMounts"].append({"name": "nothing"})),
    ("references", "key user", lambda o: _key_of_ocarm(o)),
    ("no_secret", "stands in a file", _secret),
    ("least_rights", "wildcard in verbs", lambda o: _rule_of_role(o, verbs=["*"])),
    ("least_rights", "wildcard in resources", lambda o: _rule_of_role(o, resources=["*"])),
    ("least_rights", "any secret", lambda o: _rule_of_role(o, resources=["secrets"])),
    ("least_rights", "act as other pods", lambda o: _rule_of_role(o, resources=["pods/exec"])),
    ("least_rights", "all namespaces", _cluster_role),
    ("least_rights", "nobody has it", _drop("RoleBinding", "feedworks-pipeline")),
    ("services_lead_somewhere", "selects 0", _drop("Deployment", "feedworks-mari")),
    ("services_lead_somewhere", "no container port", lambda o: _container(o)["ports"].clear()),
    ("services_lead_somewhere", "no service with a port", lambda o: _monitor(o)),
    ("in_the_namespace", "namespace default", lambda o: _labels(o, namespace="default")),
    ("in_the_namespace", "no label", lambda o: _labels(o, labels={})),
]


def _redis(objects: list[Object]) -> Object:
    container: Object = _one(objects, "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"][0]
    return container


def _key_of_ocarm(objects: list[Object]) -> None:
    ocarm = _one(objects, "Deployment", "feedworks-ocarm")["spec"]["template"]["spec"]["containers"][0]
    (variable,) = [each for each in ocarm["env"] if each["name"] == "REDIS_PASSWORD"]
    variable["valueFrom"]["secretKeyRef"]["key"] = "user"


def _monitor(objects: list[Object]) -> None:
    _one(objects, "ServiceMonitor", "feedworks-services")["spec"]["endpoints"][0]["port"] = "metrics"


def _labels(objects: list[Object], **changes: Any) -> None:
    _one(objects, "Service", "redis")["metadata"].update(changes)


@pytest.mark.parametrize(
    ("name", "said", "change"), BROKEN, ids=[f"{name}: {said}" for name, said, _ in BROKEN]
)
def test_a_broken_rule_is_seen(name: str, said: str, change: Change) -> None:
    objects = overlay("gpu")
    change(objects)
    assert any(said in each for each in RULES[name](objects)), RULES[name](objects)


def test_every_rule_was_seen_to_fail() -> None:
    assert {name for name, _, _ in BROKEN} == set(RULES)
