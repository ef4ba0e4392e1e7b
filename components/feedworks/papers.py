"""The papers of the house: what `feedworks list` shows and what a command's NAME may be."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal, NamedTuple


class Shown(NamedTuple):
    """One table of a run's summary, from metrics called `<group>/<row>/<metric>`.

    `metrics` are its columns in order; one that ends in @ stands for all its cutoffs. Rows go by the first
    column, best first, or by name where `best` is empty.
    """

    group: str
    metrics: tuple[str, ...]
    best: Literal["max", "min", ""] = ""


class Paper(NamedTuple):
    """One paper: its package is `feedworks.<name>`, its pipeline `pipelines/<name>.py`.

    `service` is the BentoML class in its module service, `package` a file that every packaged model has,
    `shown` the tables of a summary, `data` the kind of its data folder. A paper that `takes_model` also runs
    on a model from outside, without data: its settings `outside.model` and `outside.sides`.
    """

    name: str
    title: str
    source: str
    does: str
    service: str
    shown: tuple[Shown, ...]
    package: str = "config.json"
    data: Literal["interactions", "ranking", "retention", "text"] = "interactions"
    takes_model: bool = False

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
            shown=(Shown("test", ("recall@", "ndcg@", "mrr@"), best="max"),),
        ),
        Paper(
            name="mari",
            title="Accelerating Ranking Model Inference via Structural Re-parameterization",
            source="arXiv 2602.23105",
            does="cuts a ranking model's weights by side, so that the user is computed once a request",
            service="MariService",
            shown=(
                Shown("test", ("auc", "user_auc", "log_loss"), best="max"),
                Shown("equal", ("error", "twin_rms", "model_rms", "swapped")),
                Shown("flops", ("ratio@",)),
                Shown("speed", ("ms@",)),
            ),
            package="package.json",
            data="ranking",
            takes_model=True,
        ),
        Paper(
            name="ocarm",
            title="Break the Inaccessible Boundary: Distilling Post-Conversion Content for User Retention "
            "Modeling",
            source="arXiv 2604.25839",
            does="a teacher sees what users watch after they come back; its student foresees who stays "
            "without it",
            service="OcarmService",
            shown=(
                Shown("test", ("auc@", "gauc@", "log_loss@", "ece@"), best="max"),
                Shown("gain", ("auc@",), best="max"),
                Shown("recovered", ("share@",)),
            ),
            package="package.json",
            data="retention",
        ),
        Paper(
            name="ksa",
            title="Kwai Summary Attention Technical Report",
            source="arXiv 2604.24432",
            does="a language model that reads near text raw and far text through summaries, whose cache is "
            "a third of full attention's",
            service="KsaService",
            shown=(
                Shown("heldout", ("loss", "perplexity"), best="min"),
                Shown("ratio", ("loss",)),
                Shown("needle", ("recall", "exact"), best="max"),
                Shown("cache", ("ratio@",)),
                Shown("decode", ("error",)),
            ),
            package="package.json",
            data="text",
        ),
    )
}
