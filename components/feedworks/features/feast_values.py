"""Feast's types and messages, and the names that packed rows and features.json have for them."""

from __future__ import annotations

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
