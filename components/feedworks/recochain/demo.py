"""RecoChain (arXiv 2604.25787): what the demo asks the service of a packaged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP_K = 10


def ask(post: Callable[[str, dict[str, Any]], dict[str, Any]], data: Path) -> list[str]:
    """Ask for the top-10 of one user and return the answer as lines.

    Args:
        post: takes a path of the service and a JSON object, returns the answer's.
        data: the data folder of the run.
    """
    history = longest_history(data)
    answer = post("/recommend", {"history": history, "k": TOP_K})
    return [
        f"the user's last items: {' '.join(map(str, history[-TOP_K:]))}",
        f"top-{TOP_K} from the service (model {answer['model_tag']}):",
        *(
            f"{rank:>4}  item {item['item_id']:<8} score {item['score']:<9.4f} sid {item['sid']}"
            for rank, item in enumerate(answer["items"], start=1)
        ),
    ]


def longest_history(data: Path) -> list[int]:
    """Return the item ids, oldest first, of the user with the most events in a data folder."""
    from feedworks.contracts.files import read_table
    from feedworks.contracts.tables import INTERACTIONS

    events = read_table(INTERACTIONS, data).to_pandas().sort_values(["user_id", "event_time"])
    user = events["user_id"].value_counts().sort_index().idxmax()
    return [int(item) for item in events.loc[events["user_id"] == user, "item_id"]]
