"""MaRI from candidates, or a model from outside, to a packaged twin: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.mari import component
from feedworks.task_resources import Cluster, ask


@dsl.pipeline(name="mari", description=__doc__)
def pipeline(
    source: str = "synthetic",
    data_version: str = "1",
    preset: str = "tiny",
    overrides: list[str] = [],  # noqa: B006
    num_gpus: str = "0",
    num_nodes: int = 1,
    gpus_per_node: int = 0,
    gpu_type: str = "nvidia.com/gpu",
    model_cpu: str = "2",
    model_memory: str = "8Gi",
    workspace_pvc: str = "feedworks-workspace",
    secret_name: str = "feedworks-tasks",
    node_selector: dict[str, str] = {},  # noqa: B006
    gpu_node_selector: dict[str, str] = {},  # noqa: B006
    tolerations: list[dict[str, str]] = [],  # noqa: B006
):
    """Train or import a ranking model, cut it by side, prove it equal, time it, package the twin.

    Args:
        source: synthetic, or a folder that the tasks see: a ranking data folder or raw files of a known data
            set; not read for a model from outside.
        data_version: change it when the data behind source, or a model from outside, changed; else finished
            tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value; outside.model and outside.sides name a model that the tasks see.
        num_gpus: GPUs for each task that runs the model; 0 runs it on the CPU.
        num_nodes: machines for each training; over 1 its task makes a TrainJob and only watches it.
        gpus_per_node: GPUs of each of several machines; 0 trains on their CPUs.
        gpu_type: the GPU as a resource of a node: nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-3g.40gb.
        model_cpu: cores of each task that may run on GPUs, such as 2; several GPUs want several.
        model_memory: of each task that loads a model, such as 8Gi; each process on a GPU wants some.
        workspace_pvc: volume claim that the tasks see at /workspace; data and models from outside lie there.
        secret_name: of a secret with HF_TOKEN, AWS_ACCESS_KEY_ID and the like; it may be absent.
        node_selector: labels of the nodes for tasks that do not run the model.
        gpu_node_selector: labels of the nodes for tasks that do.
        tolerations: of taints, for every task, as Kubernetes writes them.
    """
    settings = {"preset": preset, "overrides": overrides}
    machines = {"num_gpus": num_gpus, "num_nodes": num_nodes}
    machines |= {"gpus_per_node": gpus_per_node, "gpu_type": gpu_type}
    prepared = component.prepare_candidates(source=source, data_version=data_version, **settings)
    candidates = {"candidates": prepared.outputs["candidates"]}
    made = component.make_ranker(**candidates, **machines, **settings)
    ranker = {"ranker": made.output}

    coloured = component.colour_graph(**ranker, **settings)
    sites = {"sites": coloured.outputs["sites"]}
    cut = component.reparameterise(**ranker, **settings)
    verified = component.verify(twin=cut.output, **ranker, **settings)
    timed = component.benchmark(**ranker, **settings).after(verified)
    results = {"verdict": verified.output, "bench": timed.output}
    evaluated = component.evaluate(twin=cut.output, **candidates, **ranker, **sites, **results, **settings)

    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        packaged = component.package(twin=cut.output, **sites, **evaluation, **settings)

    place = (gpu_type, workspace_pvc, secret_name, node_selector, gpu_node_selector, tolerations)
    resources = partial(ask, cluster=Cluster("mari", num_gpus, *place))
    resources(prepared, cpu="1", memory="4Gi", retries=2)
    resources(made, cpu=model_cpu, memory=model_memory, on_gpu=True, hours=72)
    resources(coloured, cut, cpu="1", memory=model_memory)
    resources(verified, evaluated, cpu="2", memory=model_memory)
    resources(timed, cpu="2", memory=model_memory, cached=False)
    resources(passed, cpu="100m", memory="1Gi", hours=1, cached=False)
    resources(packaged, cpu="1", memory=model_memory, retries=2, cached=False)
