"""Feast's types and messages, and the names that packed rows and features.json have for them.

Importing this module does not import Feast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from feedworks.errors import DataError
from feedworks.features.packed_rows import RowLayout

if TYPE_CHECKING:
    from feast import FeatureView
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import FeastType

_SCALARS = {
    "int32": "int32",
    "int64": "int64",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "string": "string",
    "bytes": "bytes",
    "timestamp": "unix_timestamp",
}
# type -> field of Feast's `Value` message
ATTRIBUTES = {
    **{name: f"{feast}_val" for name, feast in _SCALARS.items()},
    **{f"list<{name}>": f"{feast}_list_val" for name, feast in _SCALARS.items()},
}
# What has no type of numpy (maps, sets, structures, UUIDs) is stored as Feast's serialised message.
PROTO = "proto:"


def layout_of_view(view: FeatureView) -> RowLayout:
    """The packed layout of a Feast view, with all its features."""
    entity = ",".join(sorted(view.join_keys))
    return RowLayout(view.name, entity, [(field.name, name_of(field.dtype)) for field in view.features])


def name_of(type_: FeastType) -> str:
    """The name of a Feast type: `int64`, `list<float32>`, or `proto:...`."""
    value_type = type_.to_value_type().name.lower()
    scalar = _BY_VALUE_TYPE.get(value_type.removesuffix("_list"))
    if scalar is None:
        return PROTO + str(type_)
    return f"list<{scalar}>" if value_type.endswith("_list") else scalar


def values_of(layout: RowLayout, row: Mapping[str, Value]) -> list[Any]:
    """The values of a row of Feast's messages in the order of the layout's fields.

    Raises:
        DataError: a message holds another type than the view says.
    """
    values: list[Any] = []
    for name, type_ in layout.fields:
        message = row.get(name)
        there = None if message is None else message.WhichOneof("val")
        if message is None or there is None or there == "null_val":
            values.append(None)
        elif type_.startswith(PROTO):
            values.append(message.SerializeToString())
        elif there != ATTRIBUTES[type_]:
            raise DataError(f"view {layout.view}: {name} is a {there}, expected {ATTRIBUTES[type_]}")
        else:
            value = getattr(message, there)
            values.append(value.val if type_.startswith("list<") else value)
    return values


def message_of(type_: str, value: Any) -> Value:
    """Feast's message of one value as `RowLayout.decode_rows` gives it."""
    from feast.protos.feast.types.Value_pb2 import Value

    message = Value()
    if value is None:
        return message
    if type_.startswith(PROTO):
        message.ParseFromString(value)
    elif type_.startswith("list<"):
        cells = getattr(message, ATTRIBUTES[type_])
        cells.SetInParent()  # an empty list is no null
        cells.val.extend(value.tolist() if isinstance(value, np.ndarray) else value)
    else:
        setattr(message, ATTRIBUTES[type_], value)
    return message


_BY_VALUE_TYPE = {feast: name for name, feast in _SCALARS.items()}
