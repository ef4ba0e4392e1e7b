"""Kubeflow components of RecoChain: each hands its artifacts to one step and holds no logic of its own.

The bodies travel in the compiled YAML and run in our image, so they import what they need themselves. Every
task resolves its config from the same preset and overrides.
"""

from kfp import dsl

from feedworks import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def prepare_sequences(
    source: str,
    data_version: str,
    preset: str,
    overrides: list[str],
    sequences: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.HTML],
) -> None:
    """Open the data, stop where it breaks its contracts, and write dense ids, sequences and splits."""
    import tempfile
    from pathlib import Path

    from feedworks.datasets.folder import open_data
    from feedworks.recochain import config, steps
    from feedworks.validation.gate import require_valid

    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(source, Path(scratch))
        require_valid(data, Path(validation.path))
        prepared = steps.prepare(data, Path(sequences.path), config.resolve(preset, overrides))
    sequences.metadata.update(prepared._asdict(), source=source, data_version=data_version)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def fit_tokenizer(
    preset: str,
    overrides: list[str],
    sequences: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Output[dsl.Model],
) -> None:
    """Fit the item vectors and the residual k-means codebooks."""
    from pathlib import Path

    from feedworks.recochain import config, steps

    steps.fit_tokenizer(Path(sequences.path), Path(tokenizer.path), config.resolve(preset, overrides))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def assign_ids(
    preset: str,
    overrides: list[str],
    sequences: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Input[dsl.Model],
    semantic_ids: dsl.Output[dsl.Dataset],
) -> None:
    """Give every item its semantic ID; build the trie and the collision report."""
    from pathlib import Path

    from feedworks.recochain import config, steps

    paths = (Path(sequences.path), Path(tokenizer.path), Path(semantic_ids.path))
    steps.assign_ids(*paths, config.resolve(preset, overrides))


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_generator(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    sequences: dsl.Input[dsl.Dataset],
    semantic_ids: dsl.Input[dsl.Dataset],
    generator: dsl.Output[dsl.Model],
) -> None:
    """Stage I: train the backbone to generate the next item's semantic ID."""
    from feedworks.launch import run_step

    paths = [each.path for each in (sequences, semantic_ids, generator)]
    settings = (preset, overrides)
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("recochain", "train_generator", paths, settings, num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def mine_candidates(
    preset: str,
    overrides: list[str],
    sequences: dsl.Input[dsl.Dataset],
    semantic_ids: dsl.Input[dsl.Dataset],
    generator: dsl.Input[dsl.Model],
    candidates: dsl.Output[dsl.Dataset],
) -> None:
    """Write the generator's beams for the training positions: what the ranker learns to order."""
    from feedworks.launch import run_step

    paths = [each.path for each in (sequences, semantic_ids, generator, candidates)]
    run_step("recochain", "mine_candidates", paths, (preset, overrides))


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_joint(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    sequences: dsl.Input[dsl.Dataset],
    semantic_ids: dsl.Input[dsl.Dataset],
    generator: dsl.Input[dsl.Model],
    candidates: dsl.Input[dsl.Dataset],
    joint: dsl.Output[dsl.Model],
) -> None:
    """Stage II: train generation and ranking together."""
    from feedworks.launch import run_step

    paths = [each.path for each in (sequences, semantic_ids, generator, candidates, joint)]
    settings = (preset, overrides)
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("recochain", "train_joint", paths, settings, num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_baseline(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    sequences: dsl.Input[dsl.Dataset],
    sasrec: dsl.Output[dsl.Model],
) -> None:
    """Train SASRec, the baseline, on the same training split."""
    from feedworks.launch import run_step

    paths = [sequences.path, sasrec.path]
    settings = (preset, overrides)
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("recochain", "train_baseline", paths, settings, num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def evaluate(
    preset: str,
    overrides: list[str],
    sequences: dsl.Input[dsl.Dataset],
    semantic_ids: dsl.Input[dsl.Dataset],
    generator: dsl.Input[dsl.Model],
    joint: dsl.Input[dsl.Model],
    sasrec: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Measure the test split against the baselines; write metrics.json and report.html."""
    import shutil
    from pathlib import Path

    from feedworks.launch import use_own_cores

    use_own_cores()
    from feedworks.metrics.scalars import loggable
    from feedworks.recochain import config, steps

    data = (Path(sequences.path), Path(semantic_ids.path))
    models = (Path(generator.path), Path(joint.path), Path(sasrec.path))
    result = steps.evaluate(*data, *models, Path(evaluation.path), config.resolve(preset, overrides))
    metrics.metadata.update(loggable(result.metrics))
    shutil.copy(Path(evaluation.path) / "report.html", report.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def gate(preset: str, overrides: list[str], evaluation: dsl.Input[dsl.Artifact]) -> bool:
    """Say whether the model is good enough to be packaged."""
    from pathlib import Path

    from feedworks.recochain import config, steps
    from feedworks.storage import read_json

    settings = config.resolve(preset, overrides)
    return steps.passes_gate(read_json(Path(evaluation.path) / "metrics.json"), settings)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def package(
    preset: str,
    overrides: list[str],
    sequences: dsl.Input[dsl.Dataset],
    semantic_ids: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Input[dsl.Model],
    joint: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> None:
    """Write the folder that the service loads: weights, trie, codebooks, config and model card."""
    from pathlib import Path

    from feedworks.recochain import config, steps

    data = (Path(sequences.path), Path(semantic_ids.path))
    results = (Path(tokenizer.path), Path(joint.path), Path(evaluation.path))
    packaged = steps.package(*data, *results, Path(model.path), config.resolve(preset, overrides))
    model.metadata["tag"] = packaged.tag
