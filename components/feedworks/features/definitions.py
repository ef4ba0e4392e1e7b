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
