"""OCARM (arXiv 2604.25839): the folder that serving loads, and its model card.

package.json        the tag, and the sha256 of every other file
model.safetensors   the student's weights, with categories and vectors of the items
config.json         its architecture, and the history of its training
features.json       what it reads from the feature store, all of it known at bid time
items.safetensors   ids of the items that it knows
priors.json         mean labels of the training rows, and how often each view was missing
metrics.json        of the run
README.md           the model card
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from feedworks.configuration import flatten
from feedworks.errors import DataError, ModelError
from feedworks.features.schema import FEATURES_FILE, ServiceSchema
from feedworks.metrics.ranking import read_back
from feedworks.ocarm.config import Architecture, OcarmConfig
from feedworks.ocarm.data import ItemTable
from feedworks.ocarm.model import Student, Teacher
from feedworks.ocarm.predictor import CARD, ITEMS, METRICS, load_student, read_architecture, read_schema
from feedworks.ocarm.priors import FILE as PRIORS
from feedworks.ocarm.priors import Priors
from feedworks.reports.model_card import ModelCard, write_model_card
from feedworks.serving.package import PACKAGE_FILE, seal
from feedworks.storage import write_json
from feedworks.training.checkpoint import CONFIG, WEIGHTS, load_config_json, load_tensors, save_tensors

FILES = {
    PACKAGE_FILE: "tag, and checksums of the other files",
    WEIGHTS: "weights of the student, with categories and vectors of the items",
    CONFIG: "architecture, history of the training",
    FEATURES_FILE: "what is read from the feature store, all of it known at bid time",
    ITEMS: "ids of the items that the model knows",
    PRIORS: "mean labels of the training rows, and how often each view was missing",
    METRICS: "of the run",
}


def write_package(
    folder: Path, student: Path, observables: Path, config: OcarmConfig, metrics: Mapping[str, float]
) -> str:
    """Write what serving loads into `folder`; return the tag, which names what the model computes.

    Args:
        folder: where.
        student: the model folder of stage 2, with features.json.
        observables: what it was trained on, with the catalogue.
        config: of the run.
        metrics: flat, of the run.

    Raises:
        ModelError: the student may not be served: see `require_servable`.
        DataError: the observables are missing, or others than the student was trained on.
    """
    schema = require_servable(student)
    model = load_student(student)
    catalogue = ItemTable.read(observables)
    _require_catalogue(model, catalogue, observables)
    for name in (WEIGHTS, CONFIG, FEATURES_FILE):
        shutil.copyfile(student / name, folder / name)
    save_tensors(folder / ITEMS, {"item_id_I": torch.tensor(catalogue.item_id_I)})
    priors = Priors.of(observables, schema, model.architecture.samples.horizons)
    priors.write(folder)
    write_json(folder / METRICS, dict(metrics))
    tag = content_tag(folder)
    write_model_card(folder / CARD, _card(tag, schema, priors, config, metrics))
    seal(folder, tag)
    return tag


def require_servable(student: Path) -> ServiceSchema:
    """Check that a student knows nothing that is not known at bid time; return the features that it reads.

    Raises:
        ModelError: it was trained with the teacher's features, its checkpoint holds the teacher's parameters,
            or the folder is damaged.
    """
    schema = read_schema(student)
    if found := sorted(load_tensors(student).keys() & teacher_names(read_architecture(student))):
        raise ModelError(
            f"{student / WEIGHTS} holds parameters of the teacher ({', '.join(found[:3])}); "
            "package the student of stage 2"
        )
    return schema


def teacher_names(architecture: Architecture) -> set[str]:
    """Names of the parameters that the teacher has and the student has not."""
    with torch.device("meta"):
        return set(Teacher(architecture).state_dict()) - set(Student(architecture).state_dict())


def content_tag(folder: Path) -> str:
    """Name what a packaged model computes: metrics, card and history do not change it."""
    digest = hashlib.sha256(load_config_json(folder).encode())
    for name in (WEIGHTS, FEATURES_FILE, ITEMS, PRIORS):
        digest.update((folder / name).read_bytes())
    return f"ocarm:{digest.hexdigest()[:16]}"


def _require_catalogue(model: Student, catalogue: ItemTable, observables: Path) -> None:
    vector_IV = model.observer.items.vector_IV[1:]
    if vector_IV.shape != catalogue.vector_IV.shape or not torch.equal(
        vector_IV, torch.tensor(catalogue.vector_IV)
    ):
        raise DataError(f"{observables} holds another catalogue than the student was trained with")


def _card(
    tag: str, schema: ServiceSchema, priors: Priors, config: OcarmConfig, metrics: Mapping[str, float]
) -> ModelCard:
    facts: dict[str, Any] = {f"mean label {name}": rate for name, rate in priors.base_rate.items()}
    facts |= {
        f"view {view.name}": f"{len(view.features)} features, used for {view.ttl_s / 86_400:g} days; "
        f"missing in {priors.missing_share[view.name]:.1%} of the training rows"
        for view in schema.views
    }
    return ModelCard(
        name=tag,
        summary="How likely a lapsed user stays if brought back now, from what is known at bid time. Trained "
        "to foresee the vector of a teacher that saw what users met after they came back.",
        paper="Break the Inaccessible Boundary: Distilling Post-Conversion Content for User Retention "
        "Modeling, arXiv 2604.25839.",
        data=f"{priors.num_rows} conversions in the training split.",
        intended_use="Bids for users who stayed away for at least "
        f"{config.samples.idle_days:g} days. Horizons: {', '.join(priors.base_rate)}.",
        limitations=[
            "A user without any feature gets the mean label; the answer says so.",
            "Without a view the model answers with less, and the answer says so; it met missing views in "
            "training.",
            "Of lt1 the number is a probability, of longer horizons the expected share of days with a visit.",
        ],
        facts={**facts, **{name: str(value) for name, value in flatten(config).items()}},
        metrics=read_back(metrics, "test"),
        files=FILES,
    )
