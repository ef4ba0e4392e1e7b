"""What a task of a pipeline asks of the cluster. Compiled into the YAML; nothing of it runs in a task.

What differs between clusters is a parameter of the pipelines, so that the committed YAML fits all of them.
Kubeflow's driver wants a text for a GPU's type and *number* (of a number it makes none, and the pod asks for
no GPU), a name that is not empty for a volume and a secret, and takes an empty `{}` or `[]` as nothing asked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WORKSPACE_PATH = "/workspace"
# Of feedworks.training.state: a try after a killed one goes on from its training state.
STATE = ("FEEDWORKS_STATE", f"{WORKSPACE_PATH}/.state")
# Of torch, pyarrow and faiss, which count the cores of the node where nothing tells them those of the pod.
THREADS = "OMP_NUM_THREADS"
USER_ID = 10001  # of our images
# Keys of the secret, each an environment variable of the same name; all may be absent.
SECRET_KEYS = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
_HOUR_S = 3600
_WAIT_S = 600  # for the waits between tries and a slow start of the pod


class Cluster(NamedTuple):
    """The parameters of a pipeline that name things of the cluster.

    Attributes:
        paper: a label of every pod, beside `app.kubernetes.io/part-of`.
        num_gpus: number of GPUs for each task that runs the model, as text.
        gpu_type: name of the GPU as a resource of a node, such as `nvidia.com/gpu` or
            `nvidia.com/mig-3g.40gb`.
        workspace_pvc: name of the volume claim that every task sees at `/workspace`.
        secret_name: of a secret with `SECRET_KEYS`; it may be absent.
        node_selector: labels of the nodes for tasks that do not run the model; `{}` takes any node.
        gpu_node_selector: the same for tasks that do.
        tolerations: of every task, as Kubernetes writes them; `[]` for none.
    """

    paper: str
    num_gpus: Any
    gpu_type: Any
    workspace_pvc: Any
    secret_name: Any
    node_selector: Any
    gpu_node_selector: Any
    tolerations: Any


def ask(
    *tasks: Any,
    cluster: Cluster,
    cpu: Any,
    memory: Any,
    on_gpu: bool = False,
    retries: int = 1,
    hours: int = 24,
    cached: bool = True,
) -> None:
    """Set what Kubeflow tasks ask for: resources, retries, caching, time, volumes, secret and nodes.

    An equal earlier task is one with the same image, code and inputs: a release has its own image tag, and
    a pipeline's `data_version` stands for the data. A key of our own would stand *instead of* all these.

    Args:
        tasks: each a `kfp.dsl.PipelineTask`.
        cluster: the pipeline's parameters.
        cpu: such as `2` or `100m`; also how many threads compute. Where a parameter of the pipeline says it,
            the task finds its threads by `feedworks.launch.use_own_cores`.
        memory: such as `8Gi`; up to a quarter of it may be taken by `/dev/shm`, and all of it where a
            parameter of the pipeline says it.
        on_gpu: whether they run the model: on the GPUs and nodes that the cluster's parameters name.
        retries: after a failure, with a wait that doubles from 30 s.
        hours: the longest that one try may take.
        cached: whether an equal earlier task is reused.
    """
    from kfp import kubernetes

    for task in tasks:
        task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
        if on_gpu:
            task.set_accelerator_type(cluster.gpu_type).set_accelerator_limit(cluster.num_gpus)
        # Else the compiler does not hand them into loops and conditions, whose tasks then fail.
        asked = [cpu, memory, *([cluster.gpu_type, cluster.num_gpus] if on_gpu else [])]
        task.register_pipeline_channels([each for each in asked if not isinstance(each, str)])
        # Argo counts this maximum from the start of the first try, and ends a later try that reaches it.
        longest = f"{(retries + 1) * (hours * _HOUR_S + _WAIT_S)}s"
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration=longest)
        task.set_caching_options(cached)
        kubernetes.set_timeout(task, hours * _HOUR_S)
        _describe_pod(task, cluster, on_gpu=on_gpu)
        _mount(task, cluster, memory)
        if isinstance(cpu, str):
            task.set_env_variable(THREADS, cpu if cpu.isdecimal() else "1")


def _describe_pod(task: Any, cluster: Cluster, *, on_gpu: bool) -> None:
    from kfp import kubernetes

    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=USER_ID, run_as_non_root=True)
    for key, value in (("app.kubernetes.io/part-of", "feedworks"), ("feedworks/paper", cluster.paper)):
        kubernetes.add_pod_label(task, key, value)
    kubernetes.add_toleration_json(task, cluster.tolerations)
    kubernetes.add_node_selector_json(task, cluster.gpu_node_selector if on_gpu else cluster.node_selector)


def _mount(task: Any, cluster: Cluster, memory: Any) -> None:
    from kfp import kubernetes

    kubernetes.mount_pvc(task, cluster.workspace_pvc, WORKSPACE_PATH)
    task.set_env_variable(*STATE)
    kubernetes.use_secret_as_env(task, cluster.secret_name, {key: key for key in SECRET_KEYS}, optional=True)
    # Containers get 64 MiB of shared memory; data loaders and NCCL want more. It counts as the pod's memory.
    quarter = f"{int(memory.removesuffix('Gi')) * 256}Mi" if isinstance(memory, str) else None
    kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit=quarter)
