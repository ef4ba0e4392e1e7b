"""What the API server and the nodes have, and what has to be left out for want of it."""

from __future__ import annotations

from functools import lru_cache

from .kubectl import Object, items, kubectl, raw

STORAGE_DEFAULT = "storageclass.kubernetes.io/is-default-class"


@lru_cache
def version() -> str:
    """Of the API server, such as v1.20.2."""
    return str(raw("/version")["gitVersion"])


def minor() -> int:
    """The second number of the version."""
    return int(version().split(".")[1])


@lru_cache
def kinds(api_version: str) -> frozenset[str]:
    """Kinds that the server takes in a version of its API; none where it does not know the version."""
    path = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    if kubectl("get", "--raw", path, check=False).returncode:
        return frozenset()
    return frozenset(each["kind"] for each in raw(path)["resources"] if "/" not in each["name"])


def split(objects: list[Object]) -> tuple[list[Object], list[Object]]:
    """Objects that the server takes, and those whose API version it lacks."""
    taken, lacking = [], []
    for each in objects:
        (taken if each["kind"] in kinds(each["apiVersion"]) else lacking).append(each)
    return taken, lacking


def has_image(image: str) -> bool:
    """Whether every node has an image, so that no registry is asked for it."""
    return all(
        any(name == image or name.endswith(f"/{image}") for name in _images_of(node)) for node in nodes()
    )


def _images_of(node: Object) -> set[str]:
    return {name for image in node["status"]["images"] for name in image.get("names") or []}


def nodes() -> list[Object]:
    """All of them."""
    return items("nodes")


def num_gpus() -> int:
    """GPUs that the nodes offer."""
    return sum(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in nodes())


def makes_volumes() -> bool:
    """Whether a claim without a class gets a volume by itself."""
    classes = items("storageclasses")
    return any(each["metadata"].get("annotations", {}).get(STORAGE_DEFAULT) == "true" for each in classes)
