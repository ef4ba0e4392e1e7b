"""Rows in a real Redis, written as the packed store writes them, and a service that reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import redis

from feedworks.features.packed_redis import write_rows
from feedworks.features.reading import PROJECT, layout_of

from . import served

ROOT = Path(__file__).resolve().parents[3]
TARGET = "feedworks.ocarm.service:OcarmService"


def environment(model: Path, **more: str) -> dict[str, str]:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    return {"PYTHONPATH": sources, "FEEDWORKS_MODEL_DIR": str(model), **more}


def load(url: str, rows: Mapping[int, Mapping[str, Mapping[str, Any]]], time_us: int) -> int:
    """Write all rows, which became known at one time; return how many were new."""
    written = 0
    with redis.Redis.from_url(url) as client:
        for view in served.SCHEMA.views:
            layout = layout_of(view)
            of_view = {key: row[view.name] for key, row in rows.items() if view.name in row}
            packed = [
                layout.encode([_plain(row.get(each.name)) for each in view.features], time_us)
                for row in of_view.values()
            ]
            written += write_rows(client, PROJECT, layout, list(of_view), packed)
    return written


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
