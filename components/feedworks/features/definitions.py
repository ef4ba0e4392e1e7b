"""All Feast objects of the feature tables in one folder, for stores that need no repository on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedworks.contracts.features import FEATURE_TABLES, SERVICES, FeatureTable
from feedworks.contracts.fields import (
    Offline,
    entity_of,
    push_source_of,
    service_of,
    source_of,
    view_of,
)
from feedworks.errors import ConfigError
from feedworks.features.schema import training_only_columns

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureView


class Definitions(NamedTuple):
    """Feast objects: entities by their columns, views by their tables, services by name."""

    entities: dict[str, Entity]
    views: dict[str, FeatureView]
    services: dict[str, FeatureService]

    @property
    def objects(self) -> list[Any]:
        """All of them, in an order in which Feast can apply them."""
        return [*self.entities.values(), *self.views.values(), *self.services.values()]


def define(
    folder: Path,
    tables: Iterable[FeatureTable] = FEATURE_TABLES,
    offline: Offline = "duckdb",
) -> Definitions:
    """The Feast objects of `tables`, whose parquet files lie in `folder`, and all services that they fill."""
    kept = tuple(tables)
    views: dict[str, FeatureView] = {}
    for table in kept:
        source = source_of(table, folder, offline)
        views[table.name] = view_of(table, push_source_of(table, source) if table.stream else source)
    names = {table.name for table in kept}
    services = {
        name: service_of(name, SERVICES, views)
        for name, reads in SERVICES.items()
        if {table.name for table in reads} <= names
    }
    return Definitions({table.entity: entity_of(table.entity) for table in kept}, views, services)


def require_sound(views: Iterable[FeatureView], services: Iterable[FeatureService]) -> None:
    """Refuse definitions that say too little, or that let a served model read what is known too late.

    Raises:
        ConfigError: It names the view or service and what is wrong with it.
    """
    hidden = {table.name for table in FEATURE_TABLES if table.training_only}
    late = training_only_columns()
    for view in views:
        said = {
            "time to live": view.ttl,
            "owner": view.owner,
            "description": view.description,
            "tags": view.tags,
        }
        if missing := [name for name, value in said.items() if not value]:
            raise ConfigError(f"view {view.name} has no {' and no '.join(missing)}; take it from a contract")
        names = {field.name for field in view.features}
        if view.online and (view.name in hidden or names & late):
            raise ConfigError(f"view {view.name} is served and holds what is known only after the decision")
    for service in services:
        reads = {view.name for view in service.feature_view_projections}
        names = {field.name for view in service.feature_view_projections for field in view.features}
        found = ", ".join(sorted(reads & hidden or names & late))
        if found and service.tags.get("use") != "training-only":
            raise ConfigError(
                f"service {service.name} may be served and reads {found}, known only after the decision"
            )
