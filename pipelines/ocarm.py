"""OCARM from event logs to a packaged student and its features online: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.ocarm import component
from feedworks.task_resources import Cluster, ask


@dsl.pipeline(name="ocarm", description=__doc__)
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
    """Train a teacher on post-conversion content and a student without it; compare, audit, package.

    Args:
        source: synthetic, or a folder that tasks see: a retention data folder or raw files of a known set.
        data_version: change it when the data behind source changed; else finished tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value.
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
    built = component.build_samples(source=source, data_version=data_version, **settings)
    samples, tables = ({name: built.outputs[name]} for name in ("samples", "tables"))
    joined = component.join_features(**samples, **tables)
    observables, content = ({name: joined.outputs[name]} for name in ("observables", "content"))
    audited = component.audit_times(**samples, **observables, **content, **settings)
    audit = {"audit": audited.outputs["audit"]}
    online = component.materialize(**tables, **settings).after(audited)
    taught = component.train_teacher(**observables, **content, **audit, **machines, **settings)
    exported = component.export_vectors(teacher=taught.output, **observables, **content, **settings)
    trained = component.train_student(vectors=exported.output, **observables, **machines, **settings)
    models = {"teacher": taught.output, "student": trained.output}
    verdict = component.audit_student(**observables, **models, **settings)

    seeds = component.choose_seeds(**settings)
    with dsl.ParallelFor(seeds.output, name="seeds", parallelism=4) as seed:
        arms = component.train_arms(seed=seed, **observables, **content, **audit, **settings)
    evaluated = component.evaluate(arms=dsl.Collected(arms.output), **observables, **models, **settings)

    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        results = evaluation | {"verdict": verdict.outputs["verdict"]}
        packaged = component.package(student=trained.output, **observables, **results, **settings)

    place = (gpu_type, workspace_pvc, secret_name, node_selector, gpu_node_selector, tolerations)
    resources = partial(ask, cluster=Cluster("ocarm", num_gpus, *place))
    resources(built, cpu="2", memory="8Gi", retries=2)
    resources(online, cpu="2", memory="8Gi", retries=2, cached=False)
    resources(joined, cpu="2", memory="8Gi")
    resources(audited, cpu="1", memory="4Gi")
    resources(taught, trained, cpu=model_cpu, memory=model_memory, on_gpu=True, hours=72)
    resources(exported, arms, evaluated, verdict, cpu="2", memory=model_memory)
    resources(seeds, cpu="100m", memory="1Gi", hours=1)
    resources(passed, cpu="100m", memory="1Gi", hours=1, cached=False)
    resources(packaged, cpu="1", memory=model_memory, retries=2, cached=False)
