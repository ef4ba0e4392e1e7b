"""OCARM from event logs to a packaged student and its features online: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.ocarm import component
from feedworks.task_resources import ask

# Raise the version when a step computes something else from the same inputs.
_resources = partial(ask, cache_version="1")


@dsl.pipeline(name="ocarm", description=__doc__)
def pipeline(
    source: str = "synthetic",
    data_version: str = "1",
    preset: str = "tiny",
    overrides: list[str] = [],  # noqa: B006
    num_gpus: int = 0,
):
    """Train a teacher on post-conversion content and a student without it; compare, audit, package.

    Args:
        source: synthetic, or a folder that the tasks see: a retention data folder or raw files of a known
            data set.
        data_version: change it when the data behind source changed; else finished tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value.
        num_gpus: GPUs for teacher and student; 0 runs them on the CPU.
    """
    settings = {"preset": preset, "overrides": overrides}
    built = component.build_samples(source=source, data_version=data_version, **settings)
    _resources(built, cpu="2", memory="8Gi", retries=2)
    tables = {"tables": built.outputs["tables"]}
    samples = {"samples": built.outputs["samples"]}
    joined = component.join_features(**samples, **tables)
    _resources(joined, cpu="2", memory="8Gi")
    observables, content = ({name: joined.outputs[name]} for name in ("observables", "content"))
    audited = component.audit_times(**samples, **observables, **content, **settings)
    _resources(audited, cpu="1", memory="4Gi")
    audit = {"audit": audited.outputs["audit"]}
    online = component.materialize(**tables, **settings).after(audited)
    _resources(online, cpu="2", memory="8Gi", retries=2, cached=False)

    taught = component.train_teacher(**observables, **content, **audit, num_gpus=num_gpus, **settings)
    _resources(taught, cpu="2", memory="8Gi", num_gpus=num_gpus)
    teacher = {"teacher": taught.output}
    exported = component.export_vectors(**observables, **content, **teacher, **settings)
    _resources(exported, cpu="2", memory="8Gi")
    trained = component.train_student(vectors=exported.output, **observables, num_gpus=num_gpus, **settings)
    _resources(trained, cpu="2", memory="8Gi", num_gpus=num_gpus)
    models = teacher | {"student": trained.output}
    verdict = component.audit_student(**observables, **models, **settings)
    _resources(verdict, cpu="1", memory="4Gi")

    seeds = component.choose_seeds(**settings)
    _resources(seeds, cpu="100m", memory="1Gi")
    with dsl.ParallelFor(seeds.output, name="seeds", parallelism=4) as seed:
        arms = component.train_arms(seed=seed, **observables, **content, **audit, **settings)
        _resources(arms, cpu="2", memory="8Gi")
    evaluated = component.evaluate(arms=dsl.Collected(arms.output), **observables, **models, **settings)
    _resources(evaluated, cpu="2", memory="8Gi")

    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    _resources(passed, cpu="100m", memory="1Gi", cached=False)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        results = evaluation | {"verdict": verdict.outputs["verdict"]}
        packaged = component.package(student=trained.output, **observables, **results, **settings)
        _resources(packaged, cpu="1", memory="4Gi", retries=2, cached=False)
