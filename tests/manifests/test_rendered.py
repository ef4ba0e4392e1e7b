"""The overlays build, hold what they should, and a current Kubernetes takes every object of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from feedworks import images
from feedworks.papers import PAPERS

from .crds import closed, problems
from .rendered import (
    MANIFESTS,
    OVERLAYS,
    Object,
    Template,
    build,
    name_of,
    of_kind,
    overlay,
    render,
    templates,
)

KUBERNETES = "1.37"
# Not of Kubernetes itself: checked against their own definitions, or by the operator's.
CUSTOM = {"ClusterTrainingRuntime", "RayJob", "ServiceMonitor"}
SERVE = {
    getattr(images, "CPU_SERVE", images.CPU.replace("-cpu:", "-cpu-serve:")),
    getattr(images, "GPU_SERVE", images.GPU.replace("-gpu:", "-gpu-serve:")),
}
OURS = {images.CPU, images.GPU, images.CPU_RAY, *SERVE}
THEIRS = {"redis"}


def template_of(objects: list[Object], owner: str) -> Template:
    (found,) = [each for each in templates(objects) if each.owner == owner]
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_two_builds_are_equal(name: str) -> None:
    folder = MANIFESTS / "overlays" / name
    assert build(folder) == build(folder)


def test_no_object_is_there_twice(objects: list[Object]) -> None:
    names = [name_of(each) for each in objects]
    assert sorted(names) == sorted(set(names))


def test_kubernetes_takes_every_object(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_an_unknown_field_is_refused() -> None:
    (namespace,) = of_kind(overlay("kind"), "Namespace")
    with pytest.raises(kubernetes_validate.ValidationError, match="finaliser"):
        kubernetes_validate.validate(namespace | {"finaliser": []}, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_operators_take_their_objects(kind: str, whole: Path) -> None:
    found = of_kind([*overlay("gpu"), *render(whole)], kind)
    assert found
    for each in found:
        assert problems(each) == []


def test_an_unknown_field_of_the_runtime_is_refused() -> None:
    (runtime,) = of_kind(overlay("gpu"), "ClusterTrainingRuntime")
    runtime["spec"]["mlPolicy"]["torch"]["processes"] = 2
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    processes, limit = problems(runtime)
    assert processes.startswith("spec.mlPolicy.torch: ")
    assert "'processes' was unexpected" in processes
    assert "'backofLimit' was unexpected" in limit


def test_a_definition_is_closed_where_it_names_its_fields() -> None:
    schema = {
        "type": "object",
        "properties": {
            "properties": {"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": True}}},
            "free": {"type": "object", "additionalProperties": {"type": "string"}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}},
        },
    }
    names: Any = closed(schema)["properties"]
    assert closed(schema)["additionalProperties"] is False
    assert names["properties"]["additionalProperties"] is False
    assert names["properties"]["properties"]["a"] == {"type": ["integer", "string"]}
    assert names["free"]["additionalProperties"] == {"type": "string"}
    assert "additionalProperties" not in names["any"]


def test_images_are_those_of_the_code(objects: list[Object]) -> None:
    used = {container["image"] for each in templates(objects) for container in each.containers}
    assert {image for image in used if image.startswith("feedworks/")} <= OURS
    assert {image.partition(":")[0] for image in used if not image.startswith("feedworks/")} == THEIRS


def test_the_one_place_of_tags_names_every_image() -> None:
    text = (MANIFESTS / "components" / "images" / "kustomization.yaml").read_text()
    tags = {f"{each['name']}:{each['newTag']}" for each in yaml.safe_load(text)["images"]}
    assert {tag for tag in tags if tag.startswith("feedworks/")} == OURS
    others = [path for path in MANIFESTS.rglob("*.yaml") if "images" not in path.parts]
    assert not [str(path) for path in others if any(tag in path.read_text() for tag in tags)]


def test_every_paper_has_a_service(objects: list[Object]) -> None:
    for kind in ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"):
        names = {each["metadata"]["name"] for each in of_kind(objects, kind)}
        assert {name for name in names if name.startswith("feedworks-")} == {f"feedworks-{p}" for p in PAPERS}
    for paper in PAPERS:
        template = template_of(objects, f"Deployment/feedworks-{paper}")
        # The argument $(PAPER) is this label.
        assert template.labels["app.kubernetes.io/name"] == paper
        assert template.containers[0]["args"][:3] == ["$(PAPER)", "--model", "/models/$(PAPER)"]


def test_variables_that_others_name_come_before_them(objects: list[Object]) -> None:
    """Kubernetes leaves $(NAME) as it is where NAME is not there yet."""
    for template in templates(objects):
        for container in template.containers:
            names: list[str] = []
            for variable in container.get("env", []):
                value = str(variable.get("value", ""))
                for part in value.split("$(")[1:]:
                    assert part.partition(")")[0] in names, f"{template.owner}: {variable['name']}"
                names.append(variable["name"])
            words = [*container.get("command", []), *container.get("args", [])]
            for word in words:
                if word.startswith("$("):
                    assert word.partition(")")[0][2:] in names, f"{template.owner}: {word}"


def test_gpus_go_to_models_that_run_on_one() -> None:
    objects = overlay("gpu")
    asking = {}
    for each in templates(objects):
        for container in each.containers:
            if gpus := container["resources"]["limits"].get("nvidia.com/gpu"):
                assert container["resources"]["requests"]["nvidia.com/gpu"] == gpus
                asking[each.owner] = (container["image"], gpus)
                assert each.spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
                assert each.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    serve = (next(name for name in SERVE if "gpu" in name), "1")
    assert asking == {
        "Deployment/feedworks-ksa": serve,
        "Deployment/feedworks-recochain": serve,
        "ClusterTrainingRuntime/feedworks-torch": (images.GPU, "1"),
    }


def test_kind_needs_one_node_and_nothing_installed() -> None:
    objects = overlay("kind")
    assert {each["apiVersion"] for each in objects} == {
        *("v1", "apps/v1", "batch/v1", "autoscaling/v2", "policy/v1"),
        *("networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"),
    }
    for claim in of_kind(objects, "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        assert "storageClassName" not in claim["spec"]
    for autoscaler in of_kind(objects, "HorizontalPodAutoscaler"):
        assert autoscaler["spec"]["maxReplicas"] == 1
    requests = [c["resources"]["requests"]["cpu"] for each in templates(objects) for c in each.containers]
    assert set(requests) <= {"10m", "50m"}


def test_every_folder_of_manifests_is_used() -> None:
    """A file that no kustomization names is never applied."""
    for kustomization in MANIFESTS.rglob("kustomization.yaml"):
        folder = kustomization.parent
        text = kustomization.read_text()
        for path in folder.iterdir():
            if path != kustomization and not _is_listed_elsewhere(path):
                assert path.name in text, f"{path.relative_to(MANIFESTS)} is in no kustomization"


def _is_listed_elsewhere(path: Path) -> bool:
    """services/common is named by the papers beside it."""
    return path.name == "common"


def test_materialising_covers_the_longest_time_to_live() -> None:
    from feedworks.contracts.features import FEATURE_TABLES

    (job,) = [each for each in of_kind(overlay("gpu"), "CronJob") if "materialize" in name_of(each)]
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    days = int(next(each["value"] for each in container["env"] if each["name"] == "DAYS"))
    assert days * 86_400 == max(table.ttl_s for table in FEATURE_TABLES)
