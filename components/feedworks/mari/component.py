"""Kubeflow components of MaRI: each hands its artifacts to one step and holds no logic of its own.

The bodies travel in the compiled YAML and run in our image, so they import what they need themselves. Every
task resolves its config from the same preset and overrides.
"""

from kfp import dsl

from feedworks import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def prepare_candidates(
    source: str,
    data_version: str,
    preset: str,
    overrides: list[str],
    candidates: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.HTML],
) -> None:
    """Open the data and stop where they break their contracts; a model from outside needs none."""
    import shutil
    import tempfile
    from pathlib import Path

    from feedworks.datasets.folder import open_data
    from feedworks.mari import config
    from feedworks.validation.gate import require_valid

    Path(candidates.path).mkdir(parents=True)
    if config.resolve(preset, overrides).outside.model:
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(source, Path(scratch) / "data", kind="ranking")
        require_valid(data, Path(validation.path), kind="ranking")
        shutil.copytree(data, candidates.path, dirs_exist_ok=True)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def make_ranker(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    candidates: dsl.Input[dsl.Dataset],
    ranker: dsl.Output[dsl.Model],
) -> None:
    """Train a ranker, or import the model from outside, and export it."""
    from feedworks.launch import run_step

    paths = [candidates.path, ranker.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("mari", "make_ranker", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def colour_graph(
    preset: str,
    overrides: list[str],
    ranker: dsl.Input[dsl.Model],
    sites: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Colour the model's graph, find its sites and count what cutting them saves."""
    import shutil
    from pathlib import Path

    from feedworks.mari import config, steps

    found = steps.colour_graph(Path(ranker.path), Path(sites.path), config.resolve(preset, overrides))
    sites.metadata.update(found._asdict())
    shutil.copy(Path(sites.path) / "sites.html", page.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def reparameterise(
    preset: str,
    overrides: list[str],
    ranker: dsl.Input[dsl.Model],
    twin: dsl.Output[dsl.Model],
) -> None:
    """Cut the weights by side and write the twin."""
    from pathlib import Path

    from feedworks.mari import config, steps

    steps.reparameterise_ranker(Path(ranker.path), Path(twin.path), config.resolve(preset, overrides))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def verify(
    preset: str,
    overrides: list[str],
    ranker: dsl.Input[dsl.Model],
    twin: dsl.Input[dsl.Model],
    verdict: dsl.Output[dsl.Artifact],
) -> None:
    """Compare the twin's scores with the model's, and both with float64."""
    from pathlib import Path

    from feedworks.mari import config, steps

    paths = (Path(ranker.path), Path(twin.path), Path(verdict.path))
    verdict.metadata.update(steps.verify(*paths, config.resolve(preset, overrides))._asdict())


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def benchmark(
    preset: str,
    overrides: list[str],
    ranker: dsl.Input[dsl.Model],
    bench: dsl.Output[dsl.Artifact],
) -> None:
    """Time one request as the model is, with one-shot inference, and cut in two layouts."""
    from pathlib import Path

    from feedworks.mari import config, steps

    timed = steps.benchmark(Path(ranker.path), Path(bench.path), config.resolve(preset, overrides))
    bench.metadata.update(timed._asdict())


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def evaluate(
    preset: str,
    overrides: list[str],
    candidates: dsl.Input[dsl.Dataset],
    ranker: dsl.Input[dsl.Model],
    twin: dsl.Input[dsl.Model],
    sites: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    bench: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Bring the results together; write metrics.json, bench.json and report.html."""
    import shutil
    from pathlib import Path

    from feedworks.mari import config, steps
    from feedworks.metrics.scalars import loggable

    models = (Path(candidates.path), Path(ranker.path), Path(twin.path))
    facts = (Path(sites.path), Path(verdict.path), Path(bench.path))
    result = steps.evaluate(*models, *facts, Path(evaluation.path), config.resolve(preset, overrides))
    metrics.metadata.update(loggable(result.metrics))
    shutil.copy(Path(evaluation.path) / "report.html", report.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def gate(preset: str, overrides: list[str], evaluation: dsl.Input[dsl.Artifact]) -> bool:
    """Say whether the twin is equal, and fast enough, to be packaged."""
    from pathlib import Path

    from feedworks.mari import config, steps

    return steps.passes_gate(Path(evaluation.path), config.resolve(preset, overrides))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def package(
    preset: str,
    overrides: list[str],
    twin: dsl.Input[dsl.Model],
    sites: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> None:
    """Write the folder that the service loads: twin, schema, reports and model card."""
    from pathlib import Path

    from feedworks.mari import config, steps

    paths = (Path(twin.path), Path(sites.path), Path(evaluation.path), Path(model.path))
    model.metadata["tag"] = steps.package(*paths, config.resolve(preset, overrides)).tag
