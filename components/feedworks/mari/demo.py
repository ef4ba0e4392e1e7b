"""MaRI (arXiv 2602.23105): what the demo asks the service of a packaged twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOP_K = 10
NUM_CANDIDATES = 100


def ask(post: Callable[[str, dict[str, Any]], dict[str, Any]], data: Path) -> list[str]:
    """Ask for the scores of candidates for one user and return the best ones as lines.

    Args:
        post: takes a path of the service and a JSON object, returns the answer's.
        data: the ranking data folder of the run.
    """
    from feedworks.contracts.ranking import read_fields
    from feedworks.mari.data import read_rows

    rows = read_rows(data, "test").chosen(slice(0, NUM_CANDIDATES))
    items = np.unique(rows.item_BI.numpy(), axis=0)
    request = {"user": {"user": rows.user_BU[0].tolist()}, "candidates": {"item": items.tolist()}}
    answer = post("/score", request)
    ranked = sorted(zip(answer["scores"], items.tolist(), strict=True), reverse=True)[:TOP_K]
    fields = read_fields(data)
    user = " ".join(
        f"{field.name}={value}" for field, value in zip(fields.of_user, rows.user_BU[0].tolist(), strict=True)
    )
    names = [field.name for field in fields.of_item]
    return [
        f"the request: {user}, {len(items)} candidates",
        f"top-{TOP_K} from the service (model {answer['model_tag']}):",
        *(
            f"{rank:>4}  score {score:>8.4f}  "
            + " ".join(f"{name}={value}" for name, value in zip(names, ids, strict=True))
            for rank, (score, ids) in enumerate(ranked, start=1)
        ),
    ]
