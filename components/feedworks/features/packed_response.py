"""`get_online_features` on packed rows: one MGET for all views, and an answer that stays in numpy.

Feast makes a message of every value, then a Python object of every message. `PackedResponse` is an
`OnlineResponse` whose `to_dict`, `to_df` and `to_arrow` come straight from the columns; its `proto`, which
`feast serve` sends, is made when it is first asked for.

Shape letters: N entities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from feast import utils
from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, feast_value_type_to_python_type
from feast.value_type import ValueType

from feedworks.features.feast_values import PROTO, message_of
from feedworks.features.packed_cells import Ints, is_list
from feedworks.features.packed_redis import MGet
from feedworks.features.packed_rows import Block, RowLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureService, FeatureView
    from feast.infra.registry.base_registry import BaseRegistry


class _View(NamedTuple):
    layout: RowLayout
    names: list[str]  # requested features
    shown: list[str]  # what the answer calls them
    key_N: Ints


class Plan(NamedTuple):
    """One request: its command for Redis, and what is made of the rows."""

    command: bytes
    entities: dict[str, list[int]]
    views: list[_View]

    def answer(self, rows: Sequence[bytes | None]) -> PackedResponse:
        """The response from the rows that the command read."""
        blocks, at = [], 0
        for view in self.views:
            blocks.append(view.layout.decode(rows[at : at + len(view.key_N)]))
            at += len(view.key_N)
        return PackedResponse(self.entities, self.views, blocks)


def plan(
    layout_of: Callable[[FeatureView], RowLayout],
    registry: BaseRegistry,
    project: str,
    features: list[str] | FeatureService,
    entity_rows: list[dict[str, Any]] | Mapping[str, Any],
    full_feature_names: bool,
) -> Plan | None:
    """The plan of a request; None where Feast's own way must take it.

    That is: entities of several keys or of other types than int64, views on demand, renamed keys.
    """
    (_, on_demand, _, entity_types, join_keys, grouped, _, request_data, no_entity) = (
        utils._get_cached_request_context(registry, project, features, full_feature_names)
    )
    columns = _columns(entity_rows)
    if on_demand or request_data or no_entity or columns is None:
        return None
    entities = {name: _ints(column) for name, column in columns.items() if name in join_keys}
    lengths = {-1 if keys is None else len(keys) for keys in entities.values()}
    if getattr(features, "precompute_online", False) or len(lengths) != 1 or min(lengths) < 1:
        return None
    views = []
    for view, names in grouped:
        key = view.join_keys[0] if len(view.join_keys) == 1 else ""
        plain = not view.projection.join_key_map and getattr(view.projection, "version_tag", None) is None
        if not plain or entity_types.get(key) is not ValueType.INT64 or entities.get(key) is None:
            return None
        prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""
        keys = entities[key]
        assert keys is not None
        views.append(_View(layout_of(view), list(names), [prefix + name for name in names], keys))
    command = MGet(project, [view.layout for view in views]).command(*(view.key_N for view in views))
    return Plan(command, {name: keys.tolist() for name, keys in entities.items() if keys is not None}, views)


class PackedResponse(OnlineResponse):
    """The features of N entities, as columns.

    Args:
        entities: join key -> N ids.
        views: what was asked for.
        blocks: what was found, one per view.
    """

    def __init__(
        self, entities: dict[str, list[int]], views: Sequence[_View], blocks: Sequence[Block]
    ) -> None:
        self._entities = entities
        self._views = views
        self._blocks = blocks
        self._feature_types: dict[str, ValueType] = {}
        self._proto: GetOnlineFeaturesResponse | None = None

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """As Feast's: feature -> N Python values, None where there is none."""
        found: dict[str, Any] = {}
        for name, keys in self._entities.items():
            found[name] = list(keys)
            if include_event_timestamps:
                found[name + TIMESTAMP_POSTFIX] = [0] * len(keys)
        for view, block in zip(self._views, self._blocks, strict=True):
            types = dict(view.layout.fields)
            for name, shown in zip(view.names, view.shown, strict=True):
                found[shown] = _python(types[name], block, name)
                if include_event_timestamps:
                    found[shown + TIMESTAMP_POSTFIX] = (block.time_us // 1_000_000).tolist()
        return found

    @property
    def proto(self) -> GetOnlineFeaturesResponse:  # type: ignore[override]
        """Feast's message of the same, made at the first use."""
        if self._proto is None:
            self._proto = self._message()
        return self._proto

    def _message(self) -> GetOnlineFeaturesResponse:
        message = GetOnlineFeaturesResponse()
        for name, keys in self._entities.items():
            message.metadata.feature_names.val.append(name)
            message.results.add(
                values=[Value(int64_val=key) for key in keys],
                statuses=[FieldStatus.PRESENT] * len(keys),
            )
            for _ in keys:
                message.results[-1].event_timestamps.add()
        for view, block in zip(self._views, self._blocks, strict=True):
            times = GetOnlineFeaturesResponse.FeatureVector().event_timestamps
            for time_us in block.time_us.tolist():
                times.add(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)
            there = (block.time_us != 0).tolist()
            statuses = [FieldStatus.PRESENT if row else FieldStatus.NOT_FOUND for row in there]
            types = dict(view.layout.fields)
            for name, shown in zip(view.names, view.shown, strict=True):
                column, null = block.columns[name], block.null[name].tolist()
                cells = column.tolist() if isinstance(column, np.ndarray) else column
                values = [
                    message_of(types[name], None if empty else cell)
                    for cell, empty in zip(cells, null, strict=True)
                ]
                message.metadata.feature_names.val.append(shown)
                message.results.add(values=values, statuses=statuses, event_timestamps=times)
        return message


def _columns(rows: list[dict[str, Any]] | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Entity rows as columns; None where they are of a form that is not for us."""
    if isinstance(rows, Mapping):
        return rows
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        return None
    return {name: [row[name] for row in rows] for name in rows[0]}


def _ints(column: Any) -> Ints | None:
    """Keys (N,) where all are integers, None otherwise."""
    if not isinstance(column, list | tuple | np.ndarray) or any(type(key) is bool for key in column):
        return None
    try:
        keys = np.asarray(column)
    except (ValueError, OverflowError):
        return None
    return keys.astype(np.int64) if keys.ndim == 1 and keys.dtype.kind == "i" else None


def _python(type_: str, block: Block, name: str) -> list[Any]:
    """A column as Feast's `to_dict` gives it."""
    column = block.columns[name]
    inner = type_.removeprefix("list<").removesuffix(">")
    values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else [c.tolist() for c in column]
    empty = np.flatnonzero(block.null[name]).tolist()
    if inner == "timestamp":
        values = (
            [[_moment(v) for v in cell] for cell in values] if is_list(type_) else list(map(_moment, values))
        )
    for i in empty:
        values[i] = None
    if type_.startswith(PROTO):
        return [
            None if value is None else feast_value_type_to_python_type(message_of(type_, value))
            for value in values
        ]
    return values


def _moment(seconds: int) -> datetime | None:
    return None if seconds == NULL_TIMESTAMP_INT_VALUE else datetime.fromtimestamp(seconds, tz=UTC)
