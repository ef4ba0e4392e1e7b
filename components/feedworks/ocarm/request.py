"""OCARM (arXiv 2604.25839): what the service is asked, checked before anything reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from feedworks.contracts.features import FEATURE_TABLES, PARALLEL_LISTS
from feedworks.contracts.retention import EVENTS, NUM_SURFACES
from feedworks.contracts.tables import Column
from feedworks.features.schema import FeatureSchema, ServiceSchema, ViewSchema, training_only_columns

MAX_USERS = 256
MAX_LIST = 1000
MAX_INT = 2**63 - 1
MAX_FLOAT = 3.4e38
MAX_HOURS = 1e6  # of a list of numbers that are no share: a century
MAX_TIME_US = 4_102_444_800_000_000  # the year 2100

Id = Annotated[int, Field(ge=0, le=MAX_INT)]
TimeUs = Annotated[int, Field(ge=0, le=MAX_TIME_US)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class User(_Strict):
    """One user to decide about."""

    user_id: Id
    surface: Annotated[int, Field(ge=0, lt=NUM_SURFACES)] = Field(
        description="where the user would come back to: page, tab or campaign"
    )
    ad_item: Id | None = Field(None, description="item of the ad, if there is one")
    bid_time: TimeUs | None = Field(
        None, description="when the decision is taken, in microseconds since 1970 UTC; now if left out"
    )
    features: dict[str, Any] | None = Field(
        None, description="all features of the user by column; then the feature store is not asked"
    )


class Query(_Strict):
    """Users to decide about."""

    users: list[User] = Field(min_length=1, max_length=MAX_USERS)


class _Features(_Strict):
    """Features of one user; a model of its own for each service, see `query_type`."""

    @model_validator(mode="before")
    @classmethod
    def _known_at_bid_time(cls, values: Any) -> Any:
        names = sorted(training_only_columns() & values.keys()) if isinstance(values, Mapping) else []
        if names:
            raise ValueError(f"{', '.join(names)}: known only after the decision; no served model reads it")
        return values

    @model_validator(mode="after")
    def _parallel(self) -> Self:
        for names in PARALLEL_LISTS.values():
            lengths = {name: len(getattr(self, name, None) or ()) for name in names}
            if len(set(lengths.values())) > 1:
                said = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise ValueError(f"expected lists of one length, got {said}")
        return self


@lru_cache
def query_type(schema: ServiceSchema) -> type[Query]:
    """The form of `Query` that also checks the features by name, type and range."""
    fields: dict[str, Any] = {
        feature.name: (_type(view, feature) | None, None)
        for view in schema.views
        for feature in view.features
    }
    features: Any = create_model("Features", __base__=_Features, **fields)
    user: Any = create_model("User", __base__=User, features=(features | None, None))
    users: Any = Annotated[list[user], Field(min_length=1, max_length=MAX_USERS)]
    return create_model("Query", __base__=Query, users=(users, ...))


def _type(view: ViewSchema, feature: FeatureSchema) -> Any:
    column = _column(view, feature)
    if feature.is_list:
        item: Any = _scalar(feature.type.removeprefix("list<").removesuffix(">"), *_item_range(feature))
        return Annotated[list[item], Field(max_length=MAX_LIST)]
    low, high = (None, None) if column is None else (column.minimum, column.maximum)
    return _scalar(feature.type, low, high)


def _item_range(feature: FeatureSchema) -> tuple[float, float | None]:
    """What one number of a list may be: of a column of the events what it may be there, else not negative."""
    for column in EVENTS.columns:
        if feature.name.endswith(f"_{column.name}") and column.maximum is not None:
            return column.minimum or 0, column.maximum
    return 0, MAX_HOURS if feature.type == "list<float32>" else None


def _scalar(name: str, low: float | None, high: float | None) -> Any:
    if name.startswith("int"):
        return Annotated[
            int, Field(ge=-MAX_INT if low is None else int(low), le=MAX_INT if high is None else int(high))
        ]
    if name.startswith("float"):
        return Annotated[
            float,
            Field(
                ge=-MAX_FLOAT if low is None else low,
                le=MAX_FLOAT if high is None else high,
                allow_inf_nan=False,
            ),
        ]
    return {"bool": bool, "string": str}[name]


def _column(view: ViewSchema, feature: FeatureSchema) -> Column | None:
    """The contract of a column; None for a view that the contracts do not know."""
    for table in FEATURE_TABLES:
        if table.name == view.name:
            return next((column for column in table.features if column.name == feature.name), None)
    return None
