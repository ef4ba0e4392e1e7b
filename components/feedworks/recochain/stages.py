"""RecoChain (arXiv 2604.25787): training of both stages and the mining between them.

Stage I learns to generate. Its own beams are the negatives of stage II, which learns to rank and goes on
generating. Stage I leaves out the targets that are mined: a beam for a target that the generator has learned
by heart is far easier than the beams met in serving.
Shape legend: B rows, K candidates, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedworks.metrics import ranking
from feedworks.nn.transformer import Prefix, select_rows
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.data import (
    Examples,
    HistoryBatch,
    RankBatch,
    Sequences,
    generator_batches,
    history_tensor,
    rank_batches,
    rank_positions,
)
from feedworks.recochain.losses import generation_loss, rank_loss
from feedworks.recochain.model import PAD, RecoChain, evidence, retrieve
from feedworks.recochain.scoring import Window, score_targets, score_users
from feedworks.training.loop import FitResult, fit
from feedworks.training.seed import numpy_generator
from feedworks.training.settings import seeded


def train_stage_one(
    model: RecoChain, sequences: Sequences, catalogue: Catalogue, config: RecoChainConfig, state_dir: Path
) -> FitResult:
    """Train the generator; the best epoch is that of the best generated NDCG@10 on validation."""
    model.train_only_generator()
    at = cache(catalogue.to)

    def loss(module: RecoChain, batch: HistoryBatch) -> dict[str, Tensor]:
        return _generation_terms(module, batch.item_BT, at(batch.item_BT.device))

    batches = generator_batches(
        sequences,
        max_history=config.max_history,
        batch_size=config.generator.batch_size,
        seed=config.seed,
        skip_last=config.rank.positions if config.rank.mine_unseen else 0,
    )
    return fit(
        model,
        batches=batches,
        num_batches=None,
        loss=loss,
        config=seeded(config.generator, config.seed),
        state_dir=state_dir,
        evaluate=_monitor(sequences, catalogue, config, Window(config.max_history, 0, config.exclude_seen)),
        monitor="valid/generation/ndcg@10",
    )


def mine(model: RecoChain, sequences: Sequences, catalogue: Catalogue, config: RecoChainConfig) -> Examples:
    """Run the generator on training targets and keep its beams."""
    user_N, position_N = rank_positions(sequences, config.rank.positions)
    histories = [sequences.row(u)[:p] for u, p in zip(user_N, position_N, strict=True)]
    window = Window(config.max_history)
    search = config.search
    found = score_users(
        model, catalogue, histories, search, window, config.evaluation.batch_size, "mine candidates"
    )
    target_N = sequences.item[sequences.start[user_N] + position_N]
    own = score_targets(model, catalogue, histories, target_N, search, window.history)
    return Examples(user_N, position_N, found.item_UK, found.generation_UK, own)


def train_stage_two(
    model: RecoChain,
    sequences: Sequences,
    examples: Examples,
    catalogue: Catalogue,
    config: RecoChainConfig,
    state_dir: Path,
) -> FitResult:
    """Train ranker and generator together; the best epoch is that of the best reranked NDCG@10."""
    calibrate(model, sequences, examples, catalogue, config)
    model.train_both(freeze_backbone=config.rank.freeze_backbone)
    at = cache(catalogue.to)

    def loss(module: RecoChain, batch: RankBatch) -> dict[str, Tensor]:
        return _joint_terms(module, batch, at(batch.item_BT.device), config)

    batches = rank_batches(
        sequences,
        examples,
        max_history=config.max_history,
        search_history=config.search_history,
        negatives=config.rank.negatives,
        batch_size=config.joint.batch_size,
        seed=config.seed,
    )
    return fit(
        model,
        batches=batches,
        num_batches=None,
        loss=loss,
        config=seeded(config.joint, config.seed),
        state_dir=state_dir,
        evaluate=_monitor(
            sequences,
            catalogue,
            config,
            Window(config.max_history, config.search_history, config.exclude_seen),
        ),
        monitor="valid/rerank/ndcg@10",
    )


def _generation_terms(module: RecoChain, item_BT: Tensor, catalogue: Catalogue) -> dict[str, Tensor]:
    length_B = (item_BT != PAD).sum(dim=1)
    states_BSD, _ = module.prefill(item_BT, length_B, catalogue)
    logits = module.target_logits(states_BSD, item_BT)
    code_PL = catalogue.code_NL[item_BT[item_BT != PAD]]
    return {"loss": generation_loss(logits, code_PL), "weight": length_B.sum()}


def _joint_terms(
    module: RecoChain, batch: RankBatch, catalogue: Catalogue, config: RecoChainConfig
) -> dict[str, Tensor]:
    states_BSD, prefix = module.prefill(batch.item_BT, batch.length_B, catalogue)
    code_PL = catalogue.code_NL[batch.item_BT[batch.item_BT != PAD]]
    generation = generation_loss(module.target_logits(states_BSD, batch.item_BT), code_PL)
    rank = _rank_term(module, batch, prefix, catalogue, config)
    return {"loss": generation + config.rank.weight * rank, "generation": generation, "rank": rank}


def _rank_term(
    module: RecoChain, batch: RankBatch, prefix: Prefix, catalogue: Catalogue, config: RecoChainConfig
) -> Tensor:
    """The ranking loss over the rows whose target the beam holds, or over all with forced positives."""
    kept_B = torch.ones_like(batch.found_B) if config.rank.force_positive else batch.found_B
    row_H = kept_B.nonzero().squeeze(1)
    if not len(row_H):
        return prefix.layers[0].key.sum() * 0
    candidate_HK = batch.candidate_BK[row_H]
    found = retrieve(candidate_HK, batch.past_BF[row_H], catalogue.vector_NV, config.search.retrieved)
    prior_HK = batch.prior_BK[row_H]
    logits_HK = module.rank(select_rows(prefix, row_H), candidate_HK, prior_HK, found, catalogue)
    return rank_loss(logits_HK, candidate_HK != PAD, config.rank.loss)


@torch.no_grad()
def calibrate(
    model: RecoChain, sequences: Sequences, examples: Examples, catalogue: Catalogue, config: RecoChainConfig
) -> None:
    """Start the ranker as a logistic regression over the evidence for the mined candidates.

    Without it the first epochs go into a bias, and the network must find in a few thousand rows what a few
    weights say.
    """
    from sklearn.linear_model import LogisticRegression

    target_N = sequences.item[sequences.start[examples.user_N] + examples.position_N]
    label_NK = examples.beam_NK == target_N[:, None]
    row_H = np.flatnonzero(label_NK.any(axis=1))
    if not len(row_H):
        return
    evidence_MJ, label_M = [], []
    for rows in np.array_split(row_H, -(-len(row_H) // 256)):
        past = [sequences.row(examples.user_N[i])[: examples.position_N[i]] for i in rows]
        candidate_BK = torch.from_numpy(examples.beam_NK[rows])
        past_BF = history_tensor(past, config.search_history)
        found = retrieve(candidate_BK, past_BF, catalogue.vector_NV, config.search.retrieved)
        prior_BK = torch.from_numpy(np.where(examples.beam_NK[rows] >= 0, examples.score_NK[rows], 0))
        evidence_BKJ = evidence(candidate_BK, prior_BK, found, catalogue)
        real_BK = candidate_BK != PAD
        evidence_MJ.append(evidence_BKJ[real_BK].numpy())
        label_M.append(label_NK[rows][real_BK.numpy()])
    table, label = np.concatenate(evidence_MJ), np.concatenate(label_M)
    mean, scale = table.mean(axis=0), table.std(axis=0) + 1e-6
    fitted = LogisticRegression(max_iter=1000).fit((table - mean) / scale, label)
    weights = fitted.coef_[0] / scale
    model.set_evidence(weights.tolist(), float(fitted.intercept_[0] - weights @ mean))


def _monitor(
    sequences: Sequences, catalogue: Catalogue, config: RecoChainConfig, window: Window
) -> Callable[[RecoChain, int], dict[str, float]]:
    """Metrics of the generated order, and of the reranked one if `window` asks for it, on a fixed sample."""
    rng = numpy_generator(config.seed, "monitor")
    users = np.sort(rng.permutation(len(sequences))[: config.evaluation.monitor_users])
    histories = [sequences.history(user, "valid") for user in users]
    target = sequences.targets("valid")[users]

    def evaluate(module: RecoChain, epoch: int) -> dict[str, float]:
        there = catalogue.to(module.bos.device)
        found = score_users(module, there, histories, config.search, window, label="validate")
        orders = {"generation": found.item_UK}
        if window.search:
            orders["rerank"] = found.reranked()
        row = {}
        for name, order in orders.items():
            rank = ranking.ranks_of_targets(order, target)
            row[f"valid/{name}/ndcg@10"] = float(ranking.ndcg(rank, 10).mean())
            row[f"valid/{name}/recall@5"] = float(ranking.recall(rank, 5).mean())
            row["valid/beam_recall"] = float((rank > 0).mean())
        return row

    return evaluate


def hit_rate(sequences: Sequences, examples: Examples) -> float:
    """Share of examples whose target is among their mined candidates."""
    target_N = sequences.item[sequences.start[examples.user_N] + examples.position_N]
    return float((examples.beam_NK == target_N[:, None]).any(axis=1).mean())
