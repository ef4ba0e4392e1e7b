"""The TrainJob (trainer.kubeflow.org/v1alpha1) of a training step; only here Kubeflow's models are imported.

Its pods come from the ClusterTrainingRuntime `feedworks-torch` of the manifests, which gives them the account
and the rights, and a patch sends them to the nodes and the volume of the task that launches them; Kubeflow
Trainer tells torchrun the nodes by PET_* variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedworks import images
from feedworks.distributed.place import Place
from feedworks.errors import ConfigError
from feedworks.metrics.memory import CGROUPS, limit_bytes

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "feedworks-torch"
GPU_TYPE = "nvidia.com/gpu"
LAUNCH = ("python", "-m", "torch.distributed.run", "-m", "feedworks.launch")
# Of the pods of a job; JobSet writes the labels, and the Job each pod's number.
POD_LABELS = "jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name=node"
POD_INDEX = "batch.kubernetes.io/job-completion-index"
MANAGER = "feedworks/launcher"
NODE = "node"  # the replicated job of the runtime, and the container in it
VOLUME = "workspace"


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of a training.

    Attributes:
        num_nodes: machines, a pod on each.
        gpus_per_node: GPUs of each, with a process for each; 0 trains on CPUs.
        processes_per_node: processes of each where there is no GPU.
        gpu_type: name of a GPU as a resource of a node.
    """

    num_nodes: int
    gpus_per_node: int = 0
    processes_per_node: int = 1
    gpu_type: str = GPU_TYPE

    def __post_init__(self) -> None:
        for name, least in (("num_nodes", 1), ("gpus_per_node", 0), ("processes_per_node", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {least}")

    @property
    def processes(self) -> int:
        """Processes of each machine."""
        return self.gpus_per_node or self.processes_per_node


def build(
    name: str,
    words: Sequence[str],
    nodes: Nodes,
    *,
    namespace: str,
    labels: dict[str, str],
    limits: dict[str, str],
    variables: dict[str, str] | None = None,
    place: Place = Place(),  # noqa: B008
) -> dict[str, Any]:
    """Return the object that the API is sent.

    Args:
        name: of the job; DNS-1035, at most 40 characters, so that those of its pods fit.
        words: arguments of `feedworks.launch`.
        nodes: how many pods, processes and GPUs.
        namespace: where.
        labels: of the job.
        limits: CPU and memory of each pod, see `own_limits`; without them those of the runtime hold.
        variables: environment of each process.
        place: nodes, volume and secret instead of the runtime's, where it says any.
    """
    from kubeflow_trainer_api import models

    # A job's resources take the place of the runtime's: a GPU alone would lift the limit on memory.
    asked = limits | ({nodes.gpu_type: str(nodes.gpus_per_node)} if nodes.gpus_per_node else {})
    resources = {"limits": asked, "requests": asked} if limits else {"limits": asked}
    environment = {"PYTHONUNBUFFERED": "1", **(variables or {})}
    job = models.TrainerV1alpha1TrainJob.from_dict(
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainJob",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "runtimeRef": {"name": RUNTIME},
                "trainer": {
                    "image": images.GPU if nodes.gpus_per_node else images.CPU,
                    "command": list(LAUNCH),
                    "args": list(words),
                    "env": [{"name": key, "value": value} for key, value in environment.items()]
                    + place.secrets,
                    "numNodes": nodes.num_nodes,
                    "numProcPerNode": nodes.processes,
                    **({"resourcesPerNode": resources} if asked else {}),
                },
                **_patches(place, nodes),
            },
        }
    )
    assert job is not None
    found: dict[str, Any] = job.to_dict()
    return found


def _patches(place: Place, nodes: Nodes) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if place.node_selector:
        pod["nodeSelector"] = place.node_selector
    if place.tolerations:
        # They take the place of the runtime's, and GPU nodes are mostly tainted by the name of their GPU.
        of_gpu = {"key": nodes.gpu_type, "operator": "Exists", "effect": "NoSchedule"}
        pod["tolerations"] = place.tolerations + [of_gpu] * bool(nodes.gpus_per_node)
    if place.claim:
        pod["volumes"] = [{"name": VOLUME, "persistentVolumeClaim": {"claimName": place.claim}}]
    if not pod:
        return {}
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    spec = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": spec}]}


def own_limits(cgroup: Path = CGROUPS, *, processes: int = 1) -> dict[str, str]:
    """Return the limits on CPU and memory of a machine: for each of its processes those of this container.

    Args:
        cgroup: where the kernel tells them, version 2 or 1; nothing is limited where it does not.
        processes: of the machine; eight CUDA processes do not fit into the memory of one.
    """
    found = {}
    cores = _read(cgroup / "cpu.max").split() or [
        _read(cgroup / "cpu" / "cpu.cfs_quota_us"),
        _read(cgroup / "cpu" / "cpu.cfs_period_us"),
    ]
    if len(cores) == 2 and all(each.isdecimal() for each in cores):
        found["cpu"] = f"{processes * int(cores[0]) * 1000 // int(cores[1])}m"
    memory = limit_bytes(cgroup)
    if memory is not None:
        found["memory"] = str(processes * memory)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
