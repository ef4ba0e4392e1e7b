"""Volumes for clusters that make none by themselves: folders of the only node."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from .kubectl import ClusterError, Object, apply, kubectl, remove, wait_for
from .server import nodes

LABEL = "feedworks/tests"
USER_ID = 10001
_PARENT = "/var/tmp"
_ROOT = "feedworks-tests"


class Volumes:
    """Volumes of one run of the tests, each bound to one claim; `remove` leaves nothing.

    Args:
        namespace: of the pods that make and empty the folders. It must allow root and hostPath.
        image: that the node has, for these pods.
    """

    def __init__(self, namespace: str, image: str) -> None:
        self.run = uuid.uuid4().hex[:8]
        self._namespace = namespace
        self._image = image
        if len(nodes()) != 1:
            raise ClusterError(
                "the cluster has no default StorageClass and more than one node: a folder of a node cannot "
                "stand in; install a provisioner"
            )

    def give(self, namespace: str, claim: str, size: str = "5Gi") -> None:
        """Make the volume of a claim."""
        name = f"feedworks-tests-{self.run}-{namespace}-{claim}"
        folder = f"{_ROOT}/{self.run}/{namespace}-{claim}"
        # Kubelet makes the folder for root alone, and fsGroup changes nothing of a hostPath.
        self._as_root(f"mkdir -p {folder} && chown {USER_ID}:{USER_ID} {folder}")
        apply([self._volume(name, f"{_PARENT}/{folder}", namespace, claim, size)])

    @contextmanager
    def small(self, namespace: str, claim: str, size_mib: int) -> Iterator[None]:
        """A claim whose volume holds so little, as long as the block runs."""
        name = f"feedworks-tests-{self.run}-{namespace}-{claim}"
        folder = f"{_PARENT}/{_ROOT}/{self.run}/{namespace}-{claim}"
        options = f"size={size_mib}m,uid={USER_ID},gid={USER_ID},mode=755"
        self._on_node(f"mkdir -p {folder} && mount -t tmpfs -o {options} tmpfs {folder}")
        try:
            size = f"{size_mib}Mi"
            wanted = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {
                    # Not of the default class, which would make a volume of its own.
                    "storageClassName": "",
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": size}},
                },
            }
            apply([self._volume(name, folder, namespace, claim, size), wanted])
            yield
        finally:
            remove("persistentvolumeclaim", claim, namespace=namespace)
            remove("persistentvolume", name)
            self._on_node(f"umount {folder} && rmdir {folder}")

    def _on_node(self, script: str) -> None:
        """Run a script as the node's kubelet sees the file systems."""
        find = (
            "for each in /proc/[0-9]*; do"
            ' [ "$(cat $each/comm 2>/dev/null)" != kubelet ] || kubelet=${each#/proc/}; done'
        )
        self._as_root(f"{find}; nsenter -m -t $kubelet -- sh -ec '{script}'", on_node=True)

    def _volume(self, name: str, folder: str, namespace: str, claim: str, size: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": {LABEL: self.run}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": claim},
                "hostPath": {"path": folder},
            },
        }

    def remove(self) -> None:
        """Remove volumes and folders; their claims must be gone."""
        remove("persistentvolumes", "-l", f"{LABEL}={self.run}")
        self._as_root(f"rm -rf {_ROOT}/{self.run}; rmdir {_ROOT} || true")

    def _as_root(self, script: str, *, on_node: bool = False) -> None:
        """Run a script in the node's folder `_PARENT`; `on_node` with all rights and the node's processes."""
        name = f"root-{uuid.uuid4().hex[:8]}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {
                "restartPolicy": "Never",
                "hostPID": on_node,
                "containers": [
                    {
                        "name": "root",
                        "image": self._image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-ec", script],
                        "workingDir": "/node",
                        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "privileged": on_node},
                        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
                    }
                ],
                "volumes": [{"name": "node", "hostPath": {"path": _PARENT}}],
            },
        }
        kubectl("create", "-f", "-", stdin=json.dumps(pod))
        try:
            phase = wait_for(lambda: self._end(name), f"pod {name}", within_s=120, namespace=self._namespace)
            if phase != "Succeeded":
                raise ClusterError(kubectl("logs", name, namespace=self._namespace, check=False).stdout)
        finally:
            remove("pod", name, namespace=self._namespace)

    def _end(self, name: str) -> str | None:
        words = ["get", "pod", name, "-o", "jsonpath={.status.phase}"]
        phase = kubectl(*words, namespace=self._namespace).stdout
        return phase if phase in {"Succeeded", "Failed"} else None
