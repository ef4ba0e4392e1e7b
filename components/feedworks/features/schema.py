"""What a model reads from the feature store: the names and types of a service's views, as features.json.

A model folder carries this file, so that a served model needs neither Feast nor the contracts of the day on
which it was trained. `feedworks.features.definitions` makes the Feast objects from the same contracts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from feedworks.contracts.features import FEATURE_TABLES, SERVICES, FeatureTable
from feedworks.contracts.retention import SAMPLES
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.storage import read_json, write_json

FEATURES_FILE = "features.json"
# A hundred years: ages in microseconds stay far below 2^63.
MAX_TTL_S = 3_155_760_000
_SCALARS: dict[str, pa.DataType] = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
TYPES: dict[str, pa.DataType] = {
    **_SCALARS,
    **{f"list<{name}>": pa.list_(type_) for name, type_ in _SCALARS.items()},
}


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FeatureSchema(_Schema):
    """One column; `type` is a key of `TYPES`, such as `float32` or `list<int64>`."""

    name: str = Field(min_length=1)
    type: str

    @model_validator(mode="after")
    def _known_type(self) -> Self:
        if self.type not in TYPES:
            raise ValueError(f"feature {self.name}: type {self.type!r} is none of {', '.join(TYPES)}")
        return self

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of a value."""
        return TYPES[self.type]

    @property
    def is_list(self) -> bool:
        """Whether a value is a list."""
        return self.type.startswith("list<")


class ViewSchema(_Schema):
    """The columns that are read from one view; rows older than `ttl_s` seconds read as missing."""

    name: str = Field(min_length=1)
    entity: str = Field(min_length=1)
    ttl_s: int = Field(gt=0, le=MAX_TTL_S)
    training_only: bool
    features: tuple[FeatureSchema, ...] = Field(min_length=1, strict=False)

    @classmethod
    def of(cls, table: FeatureTable) -> ViewSchema:
        """The view of a feature table."""
        return cls(
            name=table.name,
            entity=table.entity,
            ttl_s=table.ttl_s,
            training_only=table.training_only,
            features=tuple(FeatureSchema(name=c.name, type=type_name(c.type)) for c in table.features),
        )

    @property
    def digest(self) -> str:
        """The version of a stored row, 16 hex digits: it changes with names, types and order of columns."""
        layout = [self.name, self.entity, *([feature.name, feature.type] for feature in self.features)]
        return _digest(layout)


class ServiceSchema(_Schema):
    """All that one model reads; no two columns have the same name."""

    service: str = Field(min_length=1)
    views: tuple[ViewSchema, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for names in ([view.name for view in self.views], self.columns):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"service {self.service}: {', '.join(twice)} stands twice")
        return self

    @classmethod
    def of(cls, service: str) -> ServiceSchema:
        """The schema of a feature service of the contracts.

        Raises:
            ConfigError: There is no such service.
        """
        if service not in SERVICES:
            raise ConfigError(f"no feature service is called {service!r}; known: {', '.join(SERVICES)}")
        return cls(service=service, views=tuple(ViewSchema.of(table) for table in SERVICES[service]))

    @classmethod
    def read(cls, path: Path) -> ServiceSchema:
        """Reads features.json; `path` is the file or its folder.

        Raises:
            DataError: The file is missing or does not hold a schema.
        """
        source = path / FEATURES_FILE if path.is_dir() else path
        try:
            return cls.model_validate(read_json(source))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise DataError(f"{source}: {place}: {first['msg']}; write it again") from None

    def write(self, folder: Path) -> Path:
        """Writes features.json into `folder` and returns its path; the same schema gives the same bytes."""
        write_json(folder / FEATURES_FILE, self.model_dump(mode="json"))
        return folder / FEATURES_FILE

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order of the views."""
        return [feature.name for view in self.views for feature in view.features]

    @property
    def digest(self) -> str:
        """The version of the whole, 16 hex digits: it changes with any layout of its views."""
        return _digest([self.service, *(view.digest for view in self.views)])

    def require_servable(self) -> Self:
        """The schema itself, where a served model may read all of it.

        The contracts decide, not the flag in the file, which a hand can edit: a view or a column that is
        known only after the decision, labels among them, is refused under whatever view it stands.

        Raises:
            ModelError: It names every view and column that may be read in training only.
        """
        found = list(self._training_only())
        if found:
            raise ModelError(
                f"service {self.service} reads {', '.join(found)}, known only after the decision; "
                "train the served model from a service without training-only views"
            )
        return self

    def _training_only(self) -> Iterator[str]:
        labels = (column.name for column in SAMPLES.columns if column.side == "label")
        forbidden = {*training_only_columns(), *labels}
        for view in self.views:
            whole = view.training_only or any(
                table.training_only and table.name == view.name for table in FEATURE_TABLES
            )
            for feature in view.features:
                if whole or feature.name in forbidden:
                    yield f"{view.name}.{feature.name}"


def training_only_columns() -> frozenset[str]:
    """Names of all columns that no served model may read."""
    return frozenset(c.name for table in FEATURE_TABLES if table.training_only for c in table.features)


def type_name(type_: pa.DataType) -> str:
    """The key of `TYPES` for an Arrow type.

    Raises:
        ConfigError: The feature store cannot hold such values.
    """
    for name, known in TYPES.items():
        if known.equals(type_):
            return name
    raise ConfigError(f"no feature can be of the type {type_}; known: {', '.join(TYPES)}")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
