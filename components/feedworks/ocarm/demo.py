"""OCARM (arXiv 2604.25839): what the demo asks the service of a packaged student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.features import STUDENT_SERVICE
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm import tables
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.event_log import HOUR_US, Categories, read_blocks, read_span

AWAY_H = 72


def ask(post: Callable[[str, dict[str, Any]], dict[str, Any]], data: Path) -> list[str]:
    """Ask about one user, with features in the request and without any, and return the answers as lines.

    Args:
        post: takes a path of the service and a JSON object, returns the answer's.
        data: the retention data folder of the run.
    """
    user, features = latest_features(data)
    bid = {"user_id": user, "surface": 0, "bid_time": features["aggregated_time"] + AWAY_H * HOUR_US}
    answer = post("/predict", {"users": [{**bid, "features": features}, bid]})
    given, nothing = answer["users"]
    return [
        f"user {user}, away for {AWAY_H} hours, {features['num_returns']} earlier returns",
        f"from the service (model {answer['model_tag']}):",
        f"  with {len(features)} features in the request: {_said(given)}",
        f"  with none, and no store: {_said(nothing)}",
        "To have features read from a store, set FEEDWORKS_FEATURE_STORE to its address, such "
        "as packed+redis://127.0.0.1:6379/0.",
    ]


def latest_features(data: Path) -> tuple[int, dict[str, Any]]:
    """The user with the most returns, and the latest features, made by the code that makes training sets."""
    cfg = SamplesConfig()
    events = next(read_blocks(data))
    found = {
        "user_profile": tables.user_profiles(data, events, read_span(data)),
        "interaction_aggregates": tables.aggregates(events, Categories(data), cfg),
        "ad_context": tables.ad_context(events, tables.find_conversions(events, cfg), cfg),
    }
    most = int(np.argmax(found["ad_context"]["num_returns"].to_numpy()))
    user = int(found["ad_context"]["user_id"][most].as_py())
    schema = ServiceSchema.of(STUDENT_SERVICE)
    return user, {
        feature.name: value
        for view in schema.views
        for feature in view.features
        if (value := _last(found[view.name], user, feature.name)) is not None
    }


def _last(table: pa.Table, user: int, name: str) -> Any:
    rows = table.filter(pc.equal(table["user_id"], user))
    return rows[name][-1].as_py() if len(rows) else None


def _said(answer: dict[str, Any]) -> str:
    parts = ", ".join(f"{horizon} {p:.3f}" for horizon, p in answer["probability"].items())
    why = f" ({', '.join(answer['reasons'])})" if answer["degraded"] else ""
    return f"{parts} by {answer['source']}{why}"
