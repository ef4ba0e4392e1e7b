"""The manifests as a cluster gets them: by the real kustomize, or by the one inside kubectl.

$KUSTOMIZE names a program; else `kustomize` of the PATH, else `kubectl kustomize` where it is of version 5 or
newer, which knows components with labels as these are written.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = ("kind", "gpu")
NAMESPACE = "feedworks"
# Made by the user, never by a file of the repository: name and keys.
SECRETS = {"feedworks-redis": {"password"}}
HOW_TO_GET = (
    "no kustomize: .ci/kustomize puts it on a Debian machine; or set $KUSTOMIZE, or install kubectl >= 1.27"
)


@lru_cache
def kustomize() -> tuple[str, ...] | None:
    """The command line that builds a kustomization, without its folder; None where there is no program."""
    if named := os.environ.get("KUSTOMIZE"):
        return (named, "build")
    if program := shutil.which("kustomize"):
        return (program, "build")
    if (kubectl := shutil.which("kubectl")) and _major_of(kubectl) >= 5:
        return (kubectl, "kustomize")
    return None


def _major_of(kubectl: str) -> int:
    """The major version of the kustomize inside kubectl; 0 where it is none or too old to tell."""
    told = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=False
    )
    try:
        version = json.loads(told.stdout)["kustomizeVersion"]
    except (ValueError, KeyError):
        return 0
    found = re.match(r"v(\d+)\.", version)
    return int(found.group(1)) if found else 0


def build(folder: Path) -> str:
    """What `kubectl apply -k FOLDER` would send, as YAML; skips the test where there is no kustomize."""
    command = kustomize()
    if command is None:
        pytest.skip(HOW_TO_GET)
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def _objects(folder: Path) -> tuple[Object, ...]:
    return tuple(yaml.safe_load_all(build(folder)))


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization; new ones at every call, to be changed at will."""
    return copy.deepcopy(list(_objects(folder)))


def overlay(name: str) -> list[Object]:
    """The objects of manifests/overlays/NAME."""
    return render(MANIFESTS / "overlays" / name)


def kustomization_with(folder: Path, components: list[str]) -> Path:
    """Write a kustomization of the base and components into a folder, as a user would; return the folder."""
    folder = folder.resolve()
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization", "resources:"]
    lines += [f"  - {os.path.relpath(MANIFESTS / 'base', folder)}", "components:"]
    lines += [f"  - {os.path.relpath(MANIFESTS / 'components' / name, folder)}" for name in components]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return folder


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def name_of(thing: Object) -> str:
    """Kind and name, for messages."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


class Template(NamedTuple):
    """A pod template: what has it, its labels and its spec."""

    owner: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        """All of them, those of the start first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def templates(objects: list[Object]) -> Iterator[Template]:
    """Every pod template, in whatever object: a pod's spec is what holds a list of containers."""
    for each in objects:
        yield from _templates_in(each, name_of(each))


def _templates_in(value: Any, owner: str) -> Iterator[Template]:
    if isinstance(value, list):
        for item in value:
            yield from _templates_in(item, owner)
    elif isinstance(value, dict):
        spec = value.get("spec")
        if isinstance(spec, dict) and isinstance(spec.get("containers"), list):
            yield Template(owner, value.get("metadata", {}).get("labels", {}), spec)
        else:
            for item in value.values():
                yield from _templates_in(item, owner)
