"""RecoChain (arXiv 2604.25787): the folder that serving loads, and its model card.

model.safetensors, config.json    weights, and the run's whole configuration
catalogue.safetensors             item ids, semantic IDs, vectors, training counts, trie
tokenizer.safetensors             codebooks, for items that come with a vector
README.md                         the model card
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from feedworks.configuration import flatten, to_json
from feedworks.metrics.ranking import Interval
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.evaluation import METHODS
from feedworks.recochain.model import RecoChain
from feedworks.recochain.recommender import content_tag
from feedworks.reports.model_card import ModelCard, write_model_card
from feedworks.training.checkpoint import save_model

FILES = {
    "model.safetensors": "weights",
    "config.json": "configuration of the run, tag, checksum of the weights",
    "catalogue.safetensors": "item ids, semantic IDs, vectors, training counts, trie",
    "tokenizer.safetensors": "codebooks",
}


def write_package(
    folder: Path,
    model: RecoChain,
    config: RecoChainConfig,
    metrics: Mapping[str, float],
    stats: Mapping[str, int],
) -> str:
    """Write weights, config and card into `folder`, beside its catalogue and tokenizer; return the tag."""
    save_model(folder, model, to_json(config))
    tag = content_tag(folder)
    extra = {"tag": tag, "metrics": dict(metrics)}
    save_model(folder, model, to_json(config), extra)
    write_model_card(folder / "README.md", _card(tag, config, metrics, stats))
    return tag


def intervals(metrics: Mapping[str, float], prefix: str) -> dict[str, Interval]:
    """Read the intervals of one method back from flat metrics."""
    found = {}
    for key, mean in metrics.items():
        name = key.removeprefix(f"{prefix}/")
        if name != key and "/" not in name and f"{key}/ci_low" in metrics:
            found[name] = Interval(mean, metrics[f"{key}/ci_low"], metrics[f"{key}/ci_high"])
    return found


def _card(
    tag: str, config: RecoChainConfig, metrics: Mapping[str, float], stats: Mapping[str, int]
) -> ModelCard:
    return ModelCard(
        name=tag,
        summary="Generates candidate items as semantic IDs and ranks them, in one Transformer.",
        paper="Harmonizing Generative Retrieval and Ranking in Chain-of-Recommendation, arXiv 2604.25787.",
        data=f"{stats['num_users']} users, {stats['num_items']} items, {stats['num_events']} events.",
        intended_use="Next-item recommendation from a user's history of item ids.",
        limitations=[
            "Items that were not in training can stand in a history if a vector is given; they are never "
            "recommended.",
            "A user without known items gets the most popular items.",
        ],
        facts={name: str(value) for name, value in flatten(config).items()},
        metrics={method: intervals(metrics, f"test/{method}") for method in METHODS},
        files=FILES,
    )
