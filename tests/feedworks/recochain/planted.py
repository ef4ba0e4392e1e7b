"""Histories in which only a search far back tells the next item.

A history is an item of the user's hidden style, `GAP` steps along a ring of other items, and a bell; next
comes another item of the same style. Styles are told apart by their vectors alone. A decoder with a window of
12 items sees ring and bell: it knows that a style's item comes and must spread its guess over all styles. A
search over the whole history finds the first item; a decoder with a longer window sees it too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from feedworks.metrics import ranking
from feedworks.recochain import stages
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import RecoChainConfig, resolve
from feedworks.recochain.data import Sequences
from feedworks.recochain.model import RecoChain
from feedworks.recochain.scoring import Scored, Window, score_users
from feedworks.recochain.tokenizer import Tokenizer
from feedworks.training.loop import FitResult
from feedworks.training.seed import seed_everything

STYLES, MEMBERS, RING, GAP, WIDTH = 6, 2, 16, 12, 16
BELL = STYLES * MEMBERS + RING
SETTINGS = (
    *("tokenizer.levels=2", "search.beam=16", "search.retrieved=5"),
    *("model.width=32", "model.hidden=64", "model.dropout=0", "evaluation.monitor_users=50"),
    *("generator.epochs=8", "generator.eval_every=99", "rank.mine_unseen=false", "rank.negatives=11"),
    *("joint.epochs=10", "joint.eval_every=99", "joint.lr=3e-3", "joint.batch_size=32"),
)


class Learned(NamedTuple):
    """A model of each stage, and users whom neither has seen."""

    config: RecoChainConfig
    catalogue: Catalogue
    generator: RecoChain
    model: RecoChain
    histories: list[np.ndarray]
    target_U: np.ndarray
    stage_two: FitResult

    def score(self, *, beam: int = 16, retrieved: int = 5, stage: int = 2) -> Scored:
        search = replace(self.config.search, beam=beam, retrieved=retrieved)
        window = Window(self.config.max_history, self.config.search_history)
        model = self.model if stage == 2 else self.generator
        return score_users(model, self.catalogue, self.histories, search, window)

    def ndcg(self, order: np.ndarray) -> float:
        return float(ranking.ndcg(ranking.ranks_of_targets(order, self.target_U), 10).mean())

    def gain(self, **settings: int) -> float:
        """NDCG@10 of the reranked less that of the generated order."""
        scored = self.score(**settings)
        return self.ndcg(scored.reranked()) - self.ndcg(scored.item_UK)


def learn(folder: Path, *, seed: int, num_users: int = 1000, overrides: tuple[str, ...] = ()) -> Learned:
    """Train both stages on planted histories."""
    config = resolve("tiny", (f"seed={seed}", *SETTINGS, *overrides))
    rng = np.random.default_rng(seed)
    vectors = _vectors(rng)
    sequences = _sequences(rng, num_users)
    tokenizer = Tokenizer.fit(vectors, config.tokenizer, seed)
    table = torch.from_numpy(vectors)
    catalogue = Catalogue.build(
        torch.arange(len(table)),
        tokenizer.encode(table),
        table,
        torch.from_numpy(sequences.train_counts(len(table))),
        tokenizer.num_codes,
    )
    seed_everything(seed)
    generator = RecoChain.for_catalogue(config.model, catalogue)
    stages.train_stage_one(generator, sequences, catalogue, config, folder / "generator")
    examples = stages.mine(generator, sequences, catalogue, config)
    model = RecoChain.for_catalogue(config.model, catalogue)
    model.load_state_dict(generator.state_dict())
    result = stages.train_stage_two(model, sequences, examples, catalogue, config, folder / "joint")
    fresh = _sequences(rng, 200)
    histories = [fresh.history(user, "train")[:-1] for user in range(200)]
    target_U = np.array([fresh.history(user, "train")[-1] for user in range(200)])
    return Learned(config, catalogue, generator, model, histories, target_U, result)


def _vectors(rng: np.random.Generator) -> np.ndarray:
    style = _unit(rng.standard_normal((STYLES, 1, WIDTH)))
    members = _unit(style + 0.08 * rng.standard_normal((STYLES, MEMBERS, WIDTH)))
    return np.concatenate((members.reshape(-1, WIDTH), _unit(rng.standard_normal((RING + 1, WIDTH)))))


def _sequences(rng: np.random.Generator, num_users: int) -> Sequences:
    rows = []
    for _ in range(num_users):
        first, second = rng.choice(MEMBERS, 2, replace=False) + rng.integers(STYLES) * MEMBERS
        ring = STYLES * MEMBERS + (rng.integers(RING) + np.arange(GAP)) % RING
        held_out = STYLES * MEMBERS + rng.integers(0, RING, 2)
        rows.append([first, *ring, BELL, second, *held_out])
    start = np.append(0, np.cumsum([len(row) for row in rows]))
    return Sequences(np.arange(num_users), start, np.concatenate(rows))


def _unit(table: np.ndarray) -> np.ndarray:
    return (table / np.linalg.norm(table, axis=-1, keepdims=True)).astype(np.float32)
