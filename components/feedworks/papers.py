"""The papers of the house: what `feedworks list` shows and what a command's NAME may be."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple


class Paper(NamedTuple):
    """One paper: its package is `feedworks.<name>`, its pipeline `pipelines/<name>.py`.

    `service` is the BentoML class in its module service.
    """

    name: str
    title: str
    source: str
    does: str
    service: str

    def part(self, module: str) -> ModuleType:
        """Import `feedworks.<name>.<module>` now; papers are heavy, so nothing imports them earlier."""
        return importlib.import_module(f"feedworks.{self.name}.{module}")


PAPERS: dict[str, Paper] = {
    paper.name: paper
    for paper in (
        Paper(
            name="recochain",
            title="Harmonizing Generative Retrieval and Ranking in Chain-of-Recommendation",
            source="arXiv 2604.25787",
            does="one backbone generates semantic IDs under a trie, then reranks them with the full history",
            service="RecoChainService",
        ),
    )
}
