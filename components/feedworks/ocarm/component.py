"""Kubeflow components of OCARM: each hands its artifacts to one step and holds no logic of its own.

The bodies travel in the compiled YAML and run in our image, so they import what they need themselves. Every
task resolves its config from the same preset and overrides. `train_student` gets no content: what it does not
receive it cannot open.
"""

from kfp import dsl

from feedworks import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def build_samples(
    source: str,
    data_version: str,
    preset: str,
    overrides: list[str],
    samples: dsl.Output[dsl.Dataset],
    tables: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.HTML],
) -> None:
    """Open the data, stop where they break their contracts, make samples and feature tables."""
    import tempfile
    from pathlib import Path

    from feedworks.datasets.folder import open_data
    from feedworks.ocarm import config, steps
    from feedworks.validation.gate import require_valid

    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(source, Path(scratch) / "data", kind="retention")
        require_valid(data, Path(validation.path), kind="retention")
        built = steps.build(data, Path(samples.path), Path(tables.path), config.resolve(preset, overrides))
    samples.metadata.update(built._asdict())


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def join_features(
    samples: dsl.Input[dsl.Dataset],
    tables: dsl.Input[dsl.Dataset],
    observables: dsl.Output[dsl.Dataset],
    content: dsl.Output[dsl.Dataset],
) -> None:
    """Join each sample with the features known at its bid time, and apart from them the content after it."""
    from pathlib import Path

    from feedworks.features.training_set import build_training_set

    paths = (samples.path, tables.path, observables.path, content.path)
    observables.metadata.update(build_training_set(*map(Path, paths))._asdict())


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def audit_times(
    preset: str,
    overrides: list[str],
    samples: dsl.Input[dsl.Dataset],
    observables: dsl.Input[dsl.Dataset],
    content: dsl.Input[dsl.Dataset],
    audit: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Prove the order of times for every row and that no column gives labels away, or stop the run."""
    import shutil
    from pathlib import Path

    from feedworks.ocarm import config, steps

    paths = (Path(samples.path), Path(observables.path), Path(content.path), Path(audit.path))
    steps.audit_times(*paths, config.resolve(preset, overrides))
    shutil.copy(Path(audit.path) / "times.html", page.path)


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_teacher(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    observables: dsl.Input[dsl.Dataset],
    content: dsl.Input[dsl.Dataset],
    audit: dsl.Input[dsl.Artifact],
    teacher: dsl.Output[dsl.Model],
) -> None:
    """Stage 1: the teacher, which sees the content."""
    from feedworks.launch import run_step

    paths = [observables.path, content.path, teacher.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ocarm", "train_teacher", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def export_vectors(
    preset: str,
    overrides: list[str],
    observables: dsl.Input[dsl.Dataset],
    content: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    vectors: dsl.Output[dsl.Dataset],
) -> None:
    """Write the table of teacher vectors."""
    from pathlib import Path

    from feedworks.ocarm import config, steps

    paths = (Path(observables.path), Path(content.path), Path(teacher.path), Path(vectors.path))
    steps.export_vectors(*paths, config.resolve(preset, overrides))


@dsl.component(base_image=images.GPU, install_kfp_package=False)
def train_student(
    preset: str,
    overrides: list[str],
    num_gpus: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    observables: dsl.Input[dsl.Dataset],
    vectors: dsl.Input[dsl.Dataset],
    student: dsl.Output[dsl.Model],
) -> None:
    """Stage 2: the student, from observable columns and the table of teacher vectors."""
    from feedworks.launch import run_step

    paths = [observables.path, vectors.path, student.path]
    nodes = (num_nodes, gpus_per_node, gpu_type)
    run_step("ocarm", "train_student", paths, (preset, overrides), num_processes=num_gpus, nodes=nodes)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def choose_seeds(preset: str, overrides: list[str]) -> list[str]:
    """The seeds with which every arm is trained."""
    from feedworks.ocarm import config

    return [str(seed) for seed in config.resolve(preset, overrides).evaluation.seeds]


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def train_arms(
    preset: str,
    overrides: list[str],
    seed: str,
    observables: dsl.Input[dsl.Dataset],
    content: dsl.Input[dsl.Dataset],
    audit: dsl.Input[dsl.Artifact],
    arms: dsl.Output[dsl.Dataset],
) -> None:
    """Train every arm with one seed and write what each predicts."""
    from pathlib import Path

    from feedworks.ocarm import config, steps

    paths = (Path(observables.path), Path(content.path), Path(arms.path))
    steps.train_arms(*paths, config.resolve(preset, [*overrides, f"seed={seed}"]))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def audit_student(
    preset: str,
    overrides: list[str],
    observables: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    student: dsl.Input[dsl.Model],
    verdict: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Prove that nothing of the content and nothing of the teacher is in the student, or stop the run."""
    import shutil
    from pathlib import Path

    from feedworks.ocarm import config, steps

    paths = (Path(observables.path), Path(teacher.path), Path(student.path), Path(verdict.path))
    steps.audit_student(*paths, config.resolve(preset, overrides))
    shutil.copy(Path(verdict.path) / "verdict.html", page.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def evaluate(
    preset: str,
    overrides: list[str],
    observables: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    student: dsl.Input[dsl.Model],
    arms: dsl.Input[list[dsl.Dataset]],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Compare all arms over all seeds; write metrics.json and report.html."""
    import shutil
    from pathlib import Path

    from feedworks.metrics.scalars import loggable
    from feedworks.ocarm import config, steps

    models = (Path(observables.path), Path(teacher.path), Path(student.path))
    seeds = [Path(each.path) for each in arms]
    found = steps.evaluate(*models, seeds, Path(evaluation.path), config.resolve(preset, overrides))
    metrics.metadata.update(loggable(found.metrics))
    shutil.copy(Path(evaluation.path) / "report.html", report.path)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def gate(preset: str, overrides: list[str], evaluation: dsl.Input[dsl.Artifact]) -> bool:
    """Say whether the student is good enough to be packaged."""
    from pathlib import Path

    from feedworks.ocarm import config, steps

    return steps.passes_gate(Path(evaluation.path), config.resolve(preset, overrides))


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def package(
    preset: str,
    overrides: list[str],
    observables: dsl.Input[dsl.Dataset],
    student: dsl.Input[dsl.Model],
    verdict: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> None:
    """Write the folder that the service loads: student, schema of its features, items and model card."""
    from pathlib import Path

    from feedworks.ocarm import config, steps

    made = (Path(observables.path), Path(student.path), Path(verdict.path), Path(evaluation.path))
    packaged = steps.package(*made, Path(model.path), config.resolve(preset, overrides))
    model.metadata["tag"] = packaged.tag


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def materialize(
    preset: str,
    overrides: list[str],
    tables: dsl.Input[dsl.Dataset],
    online: dsl.Output[dsl.Artifact],
    freshness: dsl.Output[dsl.HTML],
) -> None:
    """Bring the newest features into the online store and report how fresh they are."""
    import shutil
    from pathlib import Path

    from feedworks.ocarm import config, steps

    done = steps.materialize(Path(tables.path), Path(online.path), config.resolve(preset, overrides))
    online.metadata.update(done._asdict())
    shutil.copy(Path(online.path) / "freshness.html", freshness.path)
