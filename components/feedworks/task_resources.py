"""What a task of a pipeline asks of the cluster. Compiled into the YAML; nothing of it runs in a task."""

from __future__ import annotations

from typing import Any

GPU_TYPE = "nvidia.com/gpu"


def ask(
    task: Any,
    *,
    cpu: str,
    memory: str,
    cache_version: str,
    num_gpus: Any = None,
    retries: int = 1,
    cached: bool = True,
) -> None:
    """Set requests and limits, retries and the caching policy of a Kubeflow task.

    Args:
        task: a `kfp.dsl.PipelineTask`.
        cpu: such as `2` or `100m`.
        memory: such as `8Gi`.
        cache_version: raised by a pipeline when a step computes something else from the same inputs.
        num_gpus: a number or the pipeline's parameter for it; None for tasks without GPU.
        retries: after a failure, with a wait that doubles from 30 s to 10 minutes.
        cached: whether an equal earlier task is reused.
    """
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    task.set_caching_options(cached, cache_key=cache_version if cached else None)
    if num_gpus is not None:
        task.set_accelerator_type(GPU_TYPE).set_accelerator_limit(num_gpus)
