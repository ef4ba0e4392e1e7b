"""MaRI from candidates, or a model from outside, to a packaged twin: wiring and resources only."""

from functools import partial

from kfp import dsl

from feedworks.mari import component
from feedworks.task_resources import ask

# Raise the version when a step computes something else from the same inputs.
_resources = partial(ask, cache_version="1")


@dsl.pipeline(name="mari", description=__doc__)
def pipeline(
    source: str = "synthetic",
    data_version: str = "1",
    preset: str = "tiny",
    overrides: list[str] = [],  # noqa: B006
    num_gpus: int = 0,
):
    """Train or import a ranking model, cut it by side, prove it equal, time it, package the twin.

    Args:
        source: synthetic, or a folder that the tasks see: a ranking data folder or raw files of a known data
            set; not read for a model from outside.
        data_version: change it when the data behind source, or a model from outside, changed; else finished
            tasks are reused.
        preset: tiny, small or paper.
        overrides: settings as key=value; outside.model and outside.sides name a model that the tasks see.
        num_gpus: GPUs for the training; 0 runs it on the CPU.
    """
    settings = {"preset": preset, "overrides": overrides}
    prepared = component.prepare_candidates(source=source, data_version=data_version, **settings)
    _resources(prepared, cpu="1", memory="4Gi", retries=2)
    candidates = {"candidates": prepared.outputs["candidates"]}
    made = component.make_ranker(**candidates, num_gpus=num_gpus, **settings)
    _resources(made, cpu="2", memory="8Gi", num_gpus=num_gpus)
    ranker = {"ranker": made.output}

    coloured = component.colour_graph(**ranker, **settings)
    _resources(coloured, cpu="1", memory="4Gi")
    sites = {"sites": coloured.outputs["sites"]}
    cut = component.reparameterise(**ranker, **settings)
    _resources(cut, cpu="1", memory="4Gi")
    verified = component.verify(twin=cut.output, **ranker, **settings)
    _resources(verified, cpu="2", memory="4Gi")
    timed = component.benchmark(**ranker, **settings).after(verified)
    _resources(timed, cpu="2", memory="4Gi", cached=False)
    results = {"verdict": verified.output, "bench": timed.output}
    evaluated = component.evaluate(twin=cut.output, **candidates, **ranker, **sites, **results, **settings)
    _resources(evaluated, cpu="2", memory="8Gi")

    evaluation = {"evaluation": evaluated.outputs["evaluation"]}
    passed = component.gate(**evaluation, **settings)
    _resources(passed, cpu="100m", memory="1Gi", cached=False)
    with dsl.If(passed.output == True, name="good-enough"):  # noqa: E712
        packaged = component.package(twin=cut.output, **sites, **evaluation, **settings)
        _resources(packaged, cpu="1", memory="4Gi", retries=2, cached=False)
