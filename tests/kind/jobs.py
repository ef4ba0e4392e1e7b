"""Jobs of the component image on one claim, and a pod beside them that hands files in and out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .kubectl import ClusterError, Object, apply, explain, get, items, kubectl, wait_for
from .volumes import USER_ID

CLAIM = "work"
START_S = 180.0
# Reasons for which a container waits and will go on waiting.
HOPELESS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
}
NOBODY = {
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Workplace:
    """A namespace with one claim, which every pod sees at one path and, as tasks do, at /workspace.

    Args:
        namespace: has the claim `CLAIM`.
        path: where the claim is mounted; a folder of that path on this machine holds what is read here.
        image: of the pod that hands files over; it has a shell and tar.
    """

    def __init__(self, namespace: str, path: Path, image: str) -> None:
        self.namespace = namespace
        self.path = path
        self._image = image

    def open(self) -> None:
        """Start the pod that hands files over."""
        spec = self.pod(self._image, ["sleep", "infinity"])
        spec["terminationGracePeriodSeconds"] = 0
        metadata = {"name": "files", "namespace": self.namespace}
        apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
        words = ["wait", "--for=condition=Ready", "pod/files", f"--timeout={START_S:.0f}s"]
        if kubectl(*words, namespace=self.namespace, within_s=START_S + 30, check=False).returncode:
            raise ClusterError(explain(self.namespace))

    def pod(
        self,
        image: str,
        command: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        resources: Object | None = None,
        claims: dict[str, str] | None = None,
    ) -> Object:
        """A pod's spec as compiled tasks have it: a user without rights, the workspace; and a read-only root.

        What tasks ask of CPU and memory is left out, as a small node has not so much.

        Args:
            image: of its only container.
            command: words.
            environment: variables.
            resources: instead of little.
            claims: other claims by the paths at which they are mounted.
        """
        variables = {**(environment or {}), "OMP_NUM_THREADS": "1"}
        volumes: list[Object] = [
            {"name": "tmp", "emptyDir": {}},
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            {"name": CLAIM, "persistentVolumeClaim": {"claimName": CLAIM}},
        ]
        mounts = [("tmp", "/tmp"), ("dshm", "/dev/shm"), (CLAIM, str(self.path)), (CLAIM, "/workspace")]
        for path, claim in (claims or {}).items():
            volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
            mounts.append((claim, path))
        container = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(command),
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "resources": resources or {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts],
        }
        return {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": dict(NOBODY),
            "containers": [container],
            "volumes": volumes,
        }

    def start(self, name: str, spec: Object, *, retries: int = 0) -> None:
        """Create a Job."""
        job: Object = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"backoffLimit": retries, "template": {"spec": spec}},
        }
        kubectl("create", "-f", "-", stdin=json.dumps(job))

    def end(self, name: str, *, within_s: float) -> tuple[bool, str]:
        """Wait until a Job ended; return whether it succeeded, and what its last pod said.

        Raises:
            ClusterError: it did not end in time, or its pod cannot start.
        """
        ended = wait_for(
            lambda: self._outcome(name),
            f"job {name}",
            within_s=within_s,
            namespace=self.namespace,
            selector=f"job-name={name}",
        )
        last = self.pods(name)[-1]["metadata"]["name"]
        return ended == "Complete", kubectl("logs", last, namespace=self.namespace, check=False).stdout

    def run(
        self, name: str, image: str, command: Sequence[str], *, within_s: float = 600.0, **pod: Any
    ) -> str:
        """Run a Job to its end and return what it said.

        Raises:
            ClusterError: it failed; with its logs.
        """
        self.start(name, self.pod(image, command, **pod))
        succeeded, logs = self.end(name, within_s=within_s)
        if not succeeded:
            raise ClusterError(f"job {name} failed\n{logs}\n{explain(self.namespace, f'job-name={name}')}")
        return logs

    def _outcome(self, name: str) -> str | None:
        for pod in self.pods(name):
            if reason := waits_for_ever(pod):
                raise ClusterError(f"job {name}: {reason}")
        status = get("job", name, namespace=self.namespace)["status"]
        for condition in status.get("conditions", []):
            if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
                return str(condition["type"])
        return None

    def pods(self, job: str) -> list[Object]:
        """The pods of a Job, oldest first."""
        found = items("pods", "-l", f"job-name={job}", namespace=self.namespace)
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def sh(self, script: str, *, check: bool = True) -> str:
        """Run a script beside the claim."""
        words = ["exec", "files", "--", "sh", "-ec", f"cd {self.path}; {script}"]
        return kubectl(*words, namespace=self.namespace, check=check).stdout

    def put(self, folder: Path) -> None:
        """Copy a folder below `path` to the same place on the claim."""
        kubectl("cp", str(folder), f"{self.namespace}/files:{folder}", within_s=300)

    def bring(self, folder: Path) -> Path:
        """Copy a folder or file from the claim to the same place here."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        kubectl("cp", f"{self.namespace}/files:{folder}", str(folder), within_s=300)
        return folder

    def checksums(self, folder: Path) -> dict[str, str]:
        """File name -> sha256 of the files of a folder on the claim."""
        lines = self.sh(f"cd {folder}; find . -type f | sort | xargs sha256sum").splitlines()
        return {line.split()[1]: line.split()[0] for line in lines}


def waits_for_ever(pod: Object) -> str | None:
    """Why a pod will not start, in the words of the kubelet."""
    for container in pod["status"].get("containerStatuses", []):
        waiting = container["state"].get("waiting", {})
        if waiting.get("reason") in HOPELESS:
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return None
