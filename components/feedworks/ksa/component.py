"""Kubeflow components of KSA: each hands its artifacts to one step and holds no logic of its own.

The bodies travel in the compiled YAML and run in our image, so they import what they need themselves. Every
task resolves its config from the same preset and overrides.
"""

from kfp import dsl

from feedworks import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def prepare_corpus(
    source: str,
    data_version: str,
    preset: str,
    overrides: list[str],
    corpus: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.HTML],
) -> None:
    """Open the texts, stop where they break their contract, fit a tokenizer and write token files."""
    import tempfile
    from pathlib import Path

    from feedworks.datasets.folder import open_data
    from feedworks.ksa import config, steps
    from feedworks.validation.gate import require_valid

    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(source, Path(scratch) / "data", kind="text")
        require_valid(data, Path(validation.path), kind="text")
        made = steps.prepare_corpus(data, Path(corpus.path), config.resolve(preset, overrides))
    corpus.metadata.update(made._asdict(), source=source, data_version=data_version)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def make_needles(
    preset: str,
    overrides: list[str],
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Output[dsl.Dataset],
) -> None:
    """Hide facts in held-out text, by task, length and depth; others in training text."""
    from pathlib import Path

    from feedworks.ksa import config, steps

    made = steps.make_needles(Path(corpus.path), Path(needles.path), config.resolve(preset, overrides))
    needles.metadata.update(made._asdict())


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def pretrain(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    pretrained: dsl.Output[dsl.Model],
) -> None:
    """Train the model from scratch, or bring the full-attention one that is converted."""
    from feedworks.launch import run_step

    paths = [corpus.path, needles.path, pretrained.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ksa", "pretrain", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def distil(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    pretrained: dsl.Input[dsl.Model],
    distilled: dsl.Output[dsl.Model],
) -> None:
    """Conversion 1: the summaries learn to do what full attention did; a model from scratch passes."""
    from feedworks.launch import run_step

    paths = [corpus.path, needles.path, pretrained.path, distilled.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ksa", "distil", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def anneal(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    distilled: dsl.Input[dsl.Model],
    annealed: dsl.Output[dsl.Model],
) -> None:
    """Conversion 2: the summaries' own projections fade away; a model from scratch passes."""
    from feedworks.launch import run_step

    paths = [corpus.path, needles.path, distilled.path, annealed.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ksa", "anneal", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def extend(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    annealed: dsl.Input[dsl.Model],
    extended: dsl.Output[dsl.Model],
) -> None:
    """Train on longer texts with a larger base of the rotary positions, if the settings say so."""
    from feedworks.launch import run_step

    paths = [corpus.path, needles.path, annealed.path, extended.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ksa", "extend", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def choose_baselines(preset: str, overrides: list[str]) -> list[str]:
    """The other attentions that are trained beside; one empty name for none, as a loop needs a turn."""
    from feedworks.ksa import config

    return config.trained_baselines(config.resolve(preset, overrides)) or [""]


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_baseline(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    attention: str,
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    baseline: dsl.Output[dsl.Model],
) -> None:
    """Train one of the other attentions on the same batches."""
    from feedworks.launch import run_step

    paths = [corpus.path, needles.path, baseline.path]
    settings = (preset, [*overrides, f"baselines={attention}"])
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ksa", "train_baseline", paths, settings, num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def evaluate(
    preset: str,
    overrides: list[str],
    corpus: dsl.Input[dsl.Dataset],
    needles: dsl.Input[dsl.Dataset],
    extended: dsl.Input[dsl.Model],
    pretrained: dsl.Input[dsl.Model],
    baselines: dsl.Input[list[dsl.Model]],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Measure losses, needles, cache and decoding; write metrics.json and report.html."""
    import shutil
    from pathlib import Path

    from feedworks.launch import use_own_cores

    use_own_cores()
    from feedworks.ksa import config, steps
    from feedworks.metrics.scalars import loggable

    made = (Path(corpus.path), Path(needles.path), Path(extended.path), Path(pretrained.path))
    others = [Path(each.path) for each in baselines]
    found = steps.evaluate(*made, others, Path(evaluation.path), config.resolve(preset, overrides))
    metrics.metadata.update(loggable(found.metrics))
    shutil.copy(Path(evaluation.path) / "report.html", report.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def gate(preset: str, overrides: list[str], evaluation: dsl.Input[dsl.Artifact]) -> bool:
    """Say whether the model is good enough to be packaged."""
    from pathlib import Path

    from feedworks.ksa import config, steps

    return steps.passes_gate(Path(evaluation.path), config.resolve(preset, overrides))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def package(
    preset: str,
    overrides: list[str],
    corpus: dsl.Input[dsl.Dataset],
    extended: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> None:
    """Write the folder that the service loads: weights, tokenizer, limits and model card."""
    from pathlib import Path

    from feedworks.ksa import config, steps

    made = (Path(corpus.path), Path(extended.path), Path(evaluation.path))
    packaged = steps.package(*made, Path(model.path), config.resolve(preset, overrides))
    model.metadata["tag"] = packaged.tag
