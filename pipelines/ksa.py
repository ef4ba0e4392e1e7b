"""KSA from texts to a packaged long-context model, from scratch or converted: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.ksa import component
from feedworks.task_resources import ask

# Raise the version when a step computes something else from the same inputs.
_resources = partial(ask, cache_version="1")


@dsl.pipeline(name="ksa", description=__doc__)
def pipeline(
    source: str = "synthetic",
    data_version: str = "1",
    preset: str = "tiny",
    overrides: list[str] = [],  # noqa: B006
    num_gpus: int = 0,
):
    """Train or convert a model to summary attention, measure it beside other attentions, package it.

    Args:
        source: synthetic, or a folder that the tasks see: a text data folder or raw texts of a known
            data set.
        data_version: change it when the data behind source, or the base checkpoint, changed; else finished
            tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value; mode=convert with base.folder converts a Qwen3 checkpoint.
        num_gpus: GPUs for each task that runs the model; 0 runs them on the CPU.
    """
    settings = {"preset": preset, "overrides": overrides}
    on_gpu = partial(_resources, cpu="2", memory="16Gi", num_gpus=num_gpus)
    prepared = component.prepare_corpus(source=source, data_version=data_version, **settings)
    _resources(prepared, cpu="2", memory="8Gi", retries=2)
    corpus = {"corpus": prepared.outputs["corpus"]}
    hidden = component.make_needles(**corpus, **settings)
    _resources(hidden, cpu="1", memory="4Gi")
    data = corpus | {"needles": hidden.output}
    trains = data | settings | {"num_gpus": num_gpus}

    pretrained = component.pretrain(**trains)
    distilled = component.distil(pretrained=pretrained.output, **trains)
    annealed = component.anneal(distilled=distilled.output, **trains)
    extended = component.extend(annealed=annealed.output, **trains)
    trained = {"extended": extended.output}
    others = component.choose_baselines(**settings)
    _resources(others, cpu="100m", memory="1Gi")
    with dsl.ParallelFor(others.output, name="baselines", parallelism=2) as attention:
        baseline = component.train_baseline(attention=attention, **trains)
    for task in (pretrained, distilled, annealed, extended, baseline):
        on_gpu(task)

    models = trained | {"pretrained": pretrained.output, "baselines": dsl.Collected(baseline.output)}
    evaluated = component.evaluate(**data, **models, **settings)
    on_gpu(evaluated)
    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    _resources(passed, cpu="100m", memory="1Gi", cached=False)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        packaged = component.package(**corpus, **trained, **evaluation, **settings)
        _resources(packaged, cpu="1", memory="8Gi", retries=2, cached=False)
