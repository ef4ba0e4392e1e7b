"""KSA from texts to a packaged long-context model, from scratch or converted: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.ksa import component
from feedworks.task_resources import Cluster, ask


@dsl.pipeline(name="ksa", description=__doc__)
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
    model_memory: str = "16Gi",
    workspace_pvc: str = "feedworks-workspace",
    secret_name: str = "feedworks-tasks",
    node_selector: dict[str, str] = {},  # noqa: B006
    gpu_node_selector: dict[str, str] = {},  # noqa: B006
    tolerations: list[dict[str, str]] = [],  # noqa: B006
):
    """Train or convert a model to summary attention, measure it beside other attentions, package it.

    Args:
        source: synthetic, or a folder that the tasks see: a text data folder or raw texts of a known
            data set.
        data_version: change it when the data behind source, or the base checkpoint, changed; else finished
            tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value; mode=convert with base.folder converts a Qwen3 checkpoint.
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
    prepared = component.prepare_corpus(source=source, data_version=data_version, **settings)
    corpus = {"corpus": prepared.outputs["corpus"]}
    hidden = component.make_needles(**corpus, **settings)
    data = corpus | {"needles": hidden.output}
    machines = {"num_gpus": num_gpus, "num_nodes": num_nodes}
    machines |= {"gpus_per_node": gpus_per_node, "gpu_type": gpu_type}
    trains = data | settings | machines

    pretrained = component.pretrain(**trains)
    distilled = component.distil(pretrained=pretrained.output, **trains)
    annealed = component.anneal(distilled=distilled.output, **trains)
    extended = component.extend(annealed=annealed.output, **trains)
    trained = {"extended": extended.output}
    others = component.choose_baselines(**settings)
    with dsl.ParallelFor(others.output, name="baselines", parallelism=2) as attention:
        baseline = component.train_baseline(attention=attention, **trains)

    models = trained | {"pretrained": pretrained.output, "baselines": dsl.Collected(baseline.output)}
    evaluated = component.evaluate(**data, **models, **settings)
    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        packaged = component.package(**corpus, **trained, **evaluation, **settings)

    place = (gpu_type, workspace_pvc, secret_name, node_selector, gpu_node_selector, tolerations)
    resources = partial(ask, cluster=Cluster("ksa", num_gpus, *place))
    resources(prepared, cpu="2", memory="8Gi", retries=2)
    resources(hidden, cpu="1", memory="4Gi")
    stages = (pretrained, distilled, annealed, extended, baseline, evaluated)
    resources(*stages, cpu=model_cpu, memory=model_memory, on_gpu=True, hours=72)
    resources(others, cpu="100m", memory="1Gi", hours=1)
    resources(passed, cpu="100m", memory="1Gi", hours=1, cached=False)
    resources(packaged, cpu="1", memory=model_memory, retries=2, cached=False)
