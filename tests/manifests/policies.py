"""What every rendered object must keep: each rule is a function that returns what breaks it.

The rules for pods are those of the profile `restricted` of Kubernetes' pod security standards, and more: a
read-only root file system, limits, no token, numeric users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .network import matches
from .rendered import NAMESPACE, SECRETS, Object, Template, name_of, of_kind, templates

Rule = Callable[[list[Object]], list[str]]
RULES: dict[str, Rule] = {}
# Volumes that the profile `restricted` allows; hostPath is not among them.
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
HOST = ("hostNetwork", "hostPID", "hostIPC")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CLUSTER_WIDE = {"Namespace", "ClusterTrainingRuntime"}
DEFAULT_ACCOUNT = "default"
# Keeps rows in memory and a file of its own: a second one would be another store.
SINGLE = "redis"
PART_OF = "app.kubernetes.io/part-of"


def rule(check: Callable[[list[Object]], Iterator[str]]) -> Rule:
    """Register a rule under its function's name."""

    def run(objects: list[Object]) -> list[str]:
        return list(check(objects))

    RULES[check.__name__] = run
    return run


def _containers(objects: list[Object]) -> Iterator[tuple[str, Template, Object]]:
    for template in templates(objects):
        for container in template.containers:
            yield f"{template.owner}, container {container['name']}", template, container


@rule
def non_root(objects: list[Object]) -> Iterator[str]:
    for where, template, container in _containers(objects):
        merged = {**template.spec.get("securityContext", {}), **container.get("securityContext", {})}
        if merged.get("runAsNonRoot") is not True:
            yield f"{where}: runAsNonRoot is not true"
        for field in ("runAsUser", "runAsGroup"):
            if not isinstance(merged.get(field), int) or merged[field] < 1:
                yield f"{where}: {field} is no number above 0"


@rule
def no_rights_of_the_kernel(objects: list[Object]) -> Iterator[str]:
    for where, _, container in _containers(objects):
        own = container.get("securityContext", {})
        if own.get("privileged"):
            yield f"{where}: privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: allowPrivilegeEscalation is not false"
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{where}: capabilities are not dropped"


@rule
def seccomp(objects: list[Object]) -> Iterator[str]:
    for template in templates(objects):
        profile = template.spec.get("securityContext", {}).get("seccompProfile", {}).get("type")
        own = [
            c.get("securityContext", {}).get("seccompProfile", {}).get("type") for c in template.containers
        ]
        if profile != "RuntimeDefault" or any(each not in (None, "RuntimeDefault") for each in own):
            yield f"{template.owner}: seccompProfile is not RuntimeDefault"


@rule
def read_only_root(objects: list[Object]) -> Iterator[str]:
    for where, _, container in _containers(objects):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: its root file system may be written"


@rule
def nothing_of_the_host(objects: list[Object]) -> Iterator[str]:
    for template in templates(objects):
        for field in HOST:
            if template.spec.get(field):
                yield f"{template.owner}: {field}"
        for volume in template.spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            if not kinds <= VOLUMES:
                yield f"{template.owner}: volume {volume['name']} is {', '.join(kinds)}"
    for where, _, container in _containers(objects):
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: hostPort"


@rule
def resources(objects: list[Object]) -> Iterator[str]:
    for where, _, container in _containers(objects):
        for side in ("requests", "limits"):
            given = container.get("resources", {}).get(side, {})
            if missing := {"cpu", "memory"} - set(given):
                yield f"{where}: no {side} of {', '.join(sorted(missing))}"
    for template in templates(objects):
        for volume in template.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{template.owner}: emptyDir {volume['name']} has no limit"


@rule
def pinned_images(objects: list[Object]) -> Iterator[str]:
    for where, _, container in _containers(objects):
        name, _, tag = container["image"].rpartition("/")[2].partition(":")
        if not name or not tag or tag == "latest":
            yield f"{where}: image {container['image']} has no fixed tag"
        if container.get("imagePullPolicy") != "IfNotPresent":
            yield f"{where}: imagePullPolicy is not IfNotPresent"


@rule
def no_token(objects: list[Object]) -> Iterator[str]:
    for template in templates(objects):
        if template.spec.get("automountServiceAccountToken") is not False:
            yield f"{template.owner}: its token is mounted"
        if template.spec.get("serviceAccountName", DEFAULT_ACCOUNT) == DEFAULT_ACCOUNT:
            yield f"{template.owner}: it runs as the default account"
    bindings = of_kind(objects, "RoleBinding")
    entitled = {subject["name"] for each in bindings for subject in each["subjects"]}
    for account in of_kind(objects, "ServiceAccount"):
        has_rights = account["metadata"]["name"] in entitled
        if account.get("automountServiceAccountToken") is not has_rights:
            yield f"{name_of(account)}: its token is mounted, or not, against its rights"


@rule
def probed(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "Deployment", "StatefulSet"):
        for container in each["spec"]["template"]["spec"]["containers"]:
            for probe in PROBES:
                if probe not in container:
                    yield f"{name_of(each)}, container {container['name']}: no {probe}"


@rule
def drained(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "Deployment"):
        spec = each["spec"]["template"]["spec"]
        for container in spec["containers"]:
            command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            pause_s = int(command[1]) if command[:1] == ["sleep"] else 0
            if pause_s < 5:
                yield f"{name_of(each)}: no pause before its end"
            elif spec.get("terminationGracePeriodSeconds", 30) < 30 + pause_s:
                yield f"{name_of(each)}: too little time to answer what it has begun"


@rule
def scaled_and_budgeted(objects: list[Object]) -> Iterator[str]:
    scaled = {
        (ref["kind"], ref["name"])
        for ref in (each["spec"]["scaleTargetRef"] for each in of_kind(objects, "HorizontalPodAutoscaler"))
    }
    budgets = [each["spec"]["selector"] for each in of_kind(objects, "PodDisruptionBudget")]
    for each in of_kind(objects, "Deployment"):
        if each["metadata"]["name"] == SINGLE:
            continue
        if ("Deployment", each["metadata"]["name"]) not in scaled:
            yield f"{name_of(each)}: no autoscaler"
        elif "replicas" in each["spec"]:
            yield f"{name_of(each)}: replicas would undo what the autoscaler did at every apply"
        labels = each["spec"]["template"]["metadata"]["labels"]
        if sum(matches(selector, labels) for selector in budgets) != 1:
            yield f"{name_of(each)}: not exactly one disruption budget"
        constraints = each["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        if not any(matches(constraint["labelSelector"], labels) for constraint in constraints):
            yield f"{name_of(each)}: not spread over nodes"
    known = {(each["kind"], each["metadata"]["name"]) for each in objects}
    yield from (f"autoscaler of {kind}/{name}, which there is not" for kind, name in scaled - known)


@rule
def scalers_can_be_reached(objects: list[Object]) -> Iterator[str]:
    """A service computes with one thread if not told otherwise: a target above that never adds a pod."""
    by_name = {each["metadata"]["name"]: each for each in of_kind(objects, "Deployment")}
    for each in of_kind(objects, "HorizontalPodAutoscaler"):
        spec = by_name.get(each["spec"]["scaleTargetRef"]["name"], {}).get("spec")
        for container in spec["template"]["spec"]["containers"] if spec else []:
            told = {variable["name"]: variable.get("value", "1") for variable in container.get("env", [])}
            most = int(told.get("FEEDWORKS_WORKERS", "1")) * int(told.get("OMP_NUM_THREADS", "1"))
            requested = container["resources"]["requests"]["cpu"]
            cores = float(requested.removesuffix("m")) / (1000 if requested.endswith("m") else 1)
            for metric in each["spec"]["metrics"]:
                target = cores * metric["resource"]["target"]["averageUtilization"] / 100
                if target >= most:
                    yield f"{name_of(each)}: waits for {target:g} cores, and a pod uses {most}"


@rule
def references(objects: list[Object]) -> Iterator[str]:
    there = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for template in templates(objects):
        for kind, name in _referred(template):
            if (kind, name) not in there and not (kind == "Secret" and name in SECRETS):
                yield f"{template.owner}: no {kind} {name}"
        for name, key in _keys(template):
            if key not in SECRETS.get(name, ()):
                yield f"{template.owner}: key {key} of Secret {name} is not told to the user"
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        for kind, name in [(binding["roleRef"]["kind"], binding["roleRef"]["name"])] + [
            (subject["kind"], subject["name"]) for subject in binding["subjects"]
        ]:
            if (kind, name) not in there:
                yield f"{name_of(binding)}: no {kind} {name}"


def _referred(template: Template) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", template.spec.get("serviceAccountName", DEFAULT_ACCOUNT)
    for volume in template.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in template.containers:
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        for missing in mounted - {volume["name"] for volume in template.spec.get("volumes", [])}:
            yield "volume", missing
        for source in (variable.get("valueFrom", {}) for variable in container.get("env", [])):
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"]
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"]


def _keys(template: Template) -> Iterator[tuple[str, str]]:
    """Secrets' names and the keys of them that are read."""
    for volume in template.spec.get("volumes", []):
        for item in volume.get("secret", {}).get("items", []):
            yield volume["secret"]["secretName"], item["key"]
    for container in template.containers:
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], reference["key"]


@rule
def no_secret(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "Secret"):
        yield f"{name_of(each)}: a secret stands in a file"


@rule
def least_rights(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "ClusterRole", "ClusterRoleBinding"):
        yield f"{name_of(each)}: rights in all namespaces"
    for role in of_kind(objects, "Role", "ClusterRole"):
        for granted in role["rules"]:
            for field in ("apiGroups", "resources", "verbs"):
                if any("*" in value for value in granted[field]):
                    yield f"{name_of(role)}: a wildcard in {field}"
            if "secrets" in granted["resources"] and (
                "resourceNames" not in granted or granted["verbs"] != ["get"]
            ):
                yield f"{name_of(role)}: it may read any secret"
            if {"pods/exec", "pods/attach", "serviceaccounts/token"} & set(granted["resources"]):
                yield f"{name_of(role)}: it may act as other pods"
    roles = {each["metadata"]["name"] for each in of_kind(objects, "Role")}
    bound = {each["roleRef"]["name"] for each in of_kind(objects, "RoleBinding")}
    yield from (f"Role/{name}: nobody has it" for name in roles - bound)


@rule
def services_lead_somewhere(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "Service"):
        selector = {"matchLabels": each["spec"]["selector"]}
        found = [template for template in templates(objects) if matches(selector, template.labels)]
        if len(found) != 1:
            yield f"{name_of(each)}: selects {len(found)} pod templates"
            continue
        ports = {port["name"] for container in found[0].containers for port in container.get("ports", [])}
        for port in each["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"{name_of(each)}: no container port {port['targetPort']}"
    services = of_kind(objects, "Service")
    for monitor in of_kind(objects, "ServiceMonitor"):
        found = [
            each for each in services if matches(monitor["spec"]["selector"], each["metadata"]["labels"])
        ]
        ports = [{port["name"] for port in each["spec"]["ports"]} for each in found]
        for endpoint in monitor["spec"]["endpoints"]:
            if not ports or not all(endpoint["port"] in names for names in ports):
                yield f"{name_of(monitor)}: no service with a port {endpoint['port']}"


@rule
def in_the_namespace(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        expected = None if each["kind"] in CLUSTER_WIDE else NAMESPACE
        if each["metadata"].get("namespace") != expected:
            yield f"{name_of(each)}: namespace {each['metadata'].get('namespace')}"
        if each["kind"] != "Namespace" and each["metadata"].get("labels", {}).get(PART_OF) != "feedworks":
            yield f"{name_of(each)}: no label {PART_OF}"
