"""RecoChain from raw events to a packaged model: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.recochain import component
from feedworks.task_resources import ask

# Raise the version when a step computes something else from the same inputs.
_resources = partial(ask, cache_version="1")


@dsl.pipeline(name="recochain", description=__doc__)
def pipeline(
    source: str = "synthetic",
    data_version: str = "1",
    preset: str = "tiny",
    overrides: list[str] = [],  # noqa: B006
    num_gpus: int = 0,
):
    """Train, evaluate and package RecoChain.

    Args:
        source: synthetic, or a folder that the tasks see: a data folder or raw files of a known data set.
        data_version: change it when the data behind source changed; else finished tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value.
        num_gpus: GPUs for each task that runs the model; 0 runs them on the CPU.
    """
    settings = {"preset": preset, "overrides": overrides}
    prepared = component.prepare_sequences(source=source, data_version=data_version, **settings)
    _resources(prepared, cpu="1", memory="4Gi", retries=2)
    sequences = {"sequences": prepared.outputs["sequences"]}

    tokenizer = component.fit_tokenizer(**sequences, **settings)
    _resources(tokenizer, cpu="2", memory="4Gi")
    ids = component.assign_ids(tokenizer=tokenizer.output, **sequences, **settings)
    _resources(ids, cpu="1", memory="4Gi")
    data = sequences | {"semantic_ids": ids.output}

    generator = component.train_generator(num_gpus=num_gpus, **data, **settings)
    _resources(generator, cpu="2", memory="8Gi", num_gpus=num_gpus)
    candidates = component.mine_candidates(generator=generator.output, **data, **settings)
    _resources(candidates, cpu="2", memory="8Gi", num_gpus=num_gpus)
    joint = component.train_joint(
        generator=generator.output,
        candidates=candidates.output,
        num_gpus=num_gpus,
        **data,
        **settings,
    )
    _resources(joint, cpu="2", memory="8Gi", num_gpus=num_gpus)
    sasrec = component.train_baseline(num_gpus=num_gpus, **sequences, **settings)
    _resources(sasrec, cpu="2", memory="8Gi", num_gpus=num_gpus)
    models = {"generator": generator.output, "joint": joint.output, "sasrec": sasrec.output}
    evaluated = component.evaluate(**models, **data, **settings)
    _resources(evaluated, cpu="2", memory="8Gi", num_gpus=num_gpus)

    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    _resources(passed, cpu="100m", memory="1Gi", cached=False)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        packaged = component.package(
            tokenizer=tokenizer.output, joint=joint.output, **data, **evaluation, **settings
        )
        _resources(packaged, cpu="1", memory="4Gi", retries=2, cached=False)
