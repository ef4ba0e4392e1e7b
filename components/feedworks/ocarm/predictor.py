"""OCARM (arXiv 2604.25839): a packaged student that predicts, without serving framework and feature store.

Shape legend: B rows, H horizons, I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from feedworks.configuration import from_json
from feedworks.contracts.features import SERVICES, student_service
from feedworks.contracts.retention import label_of
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.features.schema import FEATURES_FILE, ServiceSchema
from feedworks.ocarm.config import Architecture
from feedworks.ocarm.data import ItemTable, observables
from feedworks.ocarm.model import Student
from feedworks.ocarm.priors import FILE as PRIORS
from feedworks.ocarm.priors import Priors
from feedworks.serving.package import check_seal
from feedworks.training.checkpoint import CONFIG, WEIGHTS, load_config_json, load_model, read_tensors

ITEMS, METRICS, CARD = "items.safetensors", "metrics.json", "README.md"
# All files of a packaged student besides package.json.
PACKAGED = frozenset({WEIGHTS, CONFIG, FEATURES_FILE, ITEMS, PRIORS, METRICS, CARD})
MAX_ROWS = 1024
WARM_ROWS = (1, 2, 16, 64)

Probabilities = npt.NDArray[np.float64]


class Predictor:
    """Predicts by a student; one thread at a time. Use `load`.

    Attributes:
        tag: names the model.
        schema: the features that it reads.
        horizons: names of its answers, such as `lt1`.
        base_rate_H: mean labels of the training rows, the answer where nothing is known.
        never_seen: views that no training row had, so that the model lacks nothing without them.
    """

    def __init__(
        self,
        student: Student,
        item_id_I: npt.NDArray[np.int64],
        schema: ServiceSchema,
        priors: Priors,
        tag: str,
    ) -> None:
        self.tag = tag
        self.schema = schema
        self.horizons = tuple(map(label_of, student.architecture.samples.horizons))
        self.base_rate_H = np.array([priors.base_rate[name] for name in self.horizons])
        self.never_seen = frozenset(view for view, share in priors.missing_share.items() if share == 1)
        self._student = student.eval()
        self._device = next(student.parameters()).device
        items = student.observer.items
        self._catalogue = ItemTable(
            item_id_I, items.category_I[1:].cpu().numpy() - 1, items.vector_IV[1:].cpu().numpy()
        )

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Load what `feedworks.ocarm.packaging` wrote.

        Args:
            folder: the packaged model.
            device: `cpu` or `cuda`.

        Raises:
            ModelError: the folder is missing, incomplete or damaged, holds a file that does not belong to
                it, or names features that are known only after the decision or are not the student's,
                whoever sealed it.
        """
        schema = read_schema(folder)
        tag = check_seal(folder, PACKAGED)["tag"]
        student = load_student(folder)
        item_id_I = read_tensors(folder / ITEMS)["item_id_I"].numpy()
        if len(item_id_I) + 1 != student.architecture.sizes.num_items:
            raise ModelError(f"{folder / ITEMS} is of another model; package the model again")
        priors = Priors.read(folder)
        if set(priors.base_rate) != set(map(label_of, student.architecture.samples.horizons)):
            raise ModelError(f"{folder / PRIORS} is of another model; package the model again")
        predictor = cls(student.to(device), item_id_I, schema, priors, tag)
        predictor.warm_up()
        return predictor

    def predict(self, columns: Mapping[str, Any]) -> Probabilities:
        """Predict `(B, H)`: of lt1 the probability of a revisit, else the expected share of days with one.

        Args:
            columns: see `feedworks.ocarm.data.observables`; others are not looked at.

        Raises:
            DataError: a column is missing or holds other values.
        """
        found = [self._predict(part) for part in _parts(columns)]
        return np.concatenate(found) if found else np.empty((0, len(self.horizons)))

    def warm_up(self) -> None:
        """Predict for unknown users, so that the first real call finds everything ready.

        Raises:
            ModelError: the model reads a column that its features.json lacks.
        """
        for rows in WARM_ROWS:
            features: dict[str, Any] = {
                feature.name: [()] * rows if feature.is_list else np.full(rows, np.nan)
                for view in self.schema.views
                for feature in view.features
            }
            zeros = np.zeros(rows, np.int64)
            try:
                self.predict(
                    {"user_id": zeros, "bid_time": zeros, "surface": zeros, "ad_item": zeros} | features
                )
            except DataError as error:
                raise ModelError(f"{FEATURES_FILE} does not fit the model: {error}") from None

    @torch.inference_mode()
    def _predict(self, columns: Mapping[str, Any]) -> Probabilities:
        observable = observables(columns, self._catalogue, self._student.architecture)
        logit_BH = self._student(type(observable)(*(x.to(self._device) for x in observable)))
        p_BH: Probabilities = logit_BH.double().sigmoid().cpu().numpy()
        return p_BH


def read_schema(folder: Path) -> ServiceSchema:
    """The features of a model folder, all of them known at bid time and of the student's service.

    Raises:
        ModelError: they are not, or features.json is missing or damaged.
    """
    try:
        schema = ServiceSchema.read(folder / FEATURES_FILE).require_servable()
        return require_student(schema, read_architecture(folder))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    except DataError as error:
        raise ModelError(str(error)) from None


def require_student(schema: ServiceSchema, architecture: Architecture) -> ServiceSchema:
    """The schema itself, where service, views and entities are in the contracts those of such a student.

    The service with the landing item is for a student that was trained with one, and for no other.
    Columns may be those of an earlier day: stored rows have versions, and the model names what it lacks.

    Raises:
        ModelError: they are not; it names the first that is not.
    """
    service = student_service(architecture.samples.landing_item)
    if schema.service != service:
        raise ModelError(f"{FEATURES_FILE} is of service {schema.service!r}, not of {service}")
    entity_of = {table.name: table.entity for table in SERVICES[service]}
    for view in schema.views:
        if view.name not in entity_of:
            known = ", ".join(entity_of)
            raise ModelError(f"{FEATURES_FILE}: {service} has no view {view.name!r}; it has {known}")
        if view.entity != entity_of[view.name]:
            expected = entity_of[view.name]
            raise ModelError(f"{FEATURES_FILE}: {view.name} is read by {view.entity!r}, not by {expected}")
    return schema


def load_student(folder: Path) -> Student:
    """The student of a model folder, on the CPU, in eval mode.

    Raises:
        ModelError: the folder is missing or damaged, or holds another kind of model.
    """
    student = Student(read_architecture(folder))
    load_model(folder, student)
    return student.eval()


def read_architecture(folder: Path) -> Architecture:
    """The architecture of a model folder.

    Raises:
        ModelError: the folder is missing or damaged, or holds another kind of model.
    """
    try:
        return from_json(Architecture, load_config_json(folder))
    except ConfigError as error:
        raise ModelError(f"{folder / CONFIG}: {error}; train the student again") from None


def _parts(columns: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Pieces of at most `MAX_ROWS` rows."""
    num_rows = len(columns["bid_time"])
    if num_rows <= MAX_ROWS:
        if num_rows:
            yield columns
        return
    for start in range(0, num_rows, MAX_ROWS):
        yield {name: column[start : start + MAX_ROWS] for name, column in columns.items()}
