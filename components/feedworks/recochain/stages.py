"""RecoChain (arXiv 2604.25787): training of both stages and the mining between them.

Stage I learns to generate. Its own beams are the negatives of stage II, which learns to rank and goes on
generating. Stage I leaves out the targets that are mined: a beam for a target that the generator has learned
by heart is far easier than the beams met in serving.
Shape legend: B rows, K candidates, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedworks.metrics import ranking
from feedworks.nn.transformer import Prefix, select_rows
from feedworks.recochain.calibration import fit_evidence
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
from feedworks.recochain.losses import generation_loss, item_loss, rank_loss
from feedworks.recochain.model import PAD, RecoChain, evidence, retrieve
from feedworks.recochain.scoring import Window, score_targets, score_users
from feedworks.training.loop import FitResult, fit
from feedworks.training.seed import numpy_generator
from feedworks.training.settings import seeded
from feedworks.training.whole import of_whole, only_rows


def train_stage_one(
    model: RecoChain, sequences: Sequences, catalogue: Catalogue, config: RecoChainConfig, state_dir: Path
) -> FitResult:
    """Train the generator; the best epoch is that of the best generated NDCG@10 on validation."""
    model.train_only_generator()
    at = cache(catalogue.to)

    def loss(module: RecoChain, batch: HistoryBatch) -> dict[str, Tensor]:
        there = at(batch.item_BT.device)
        length_B = (batch.item_BT != PAD).sum(dim=1)
        states_BSD, _ = module.prefill(batch.item_BT, length_B, there)
        terms = _generation_terms(module, states_BSD, batch.item_BT, there, config)
        return terms | {"weight": length_B.sum()}

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
    window = Window(config.max_history, exclude_seen=config.exclude_seen)
    search = config.search
    found = score_users(
        model, catalogue, histories, search, window, config.evaluation.batch_size, "mine candidates"
    )
    target_N = sequences.item[sequences.start[user_N] + position_N]
    own = score_targets(model, catalogue, histories, target_N, search, window.history)
    prior_NKP = np.stack((found.generation_UK, found.item_score_UK), axis=-1)
    return Examples(user_N, position_N, found.item_UK, prior_NKP, own)


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


def _generation_terms(
    module: RecoChain, states_BSD: Tensor, item_BT: Tensor, catalogue: Catalogue, config: RecoChainConfig
) -> dict[str, Tensor]:
    item_P = item_BT[item_BT != PAD]
    states_PLD = module.target_states(states_BSD, item_BT)
    codes = generation_loss(module.target_logits(states_PLD), catalogue.code_NL[item_P])
    if not module.config.item_scores:
        return {"loss": codes, "generation": codes}
    state_PD = states_PLD[:, 0]
    own_P = module.item_scores(state_PD, item_P.unsqueeze(1), catalogue).squeeze(1)
    other_PM = module.sampled_scores(state_PD, item_P, config.items.negatives, catalogue)
    items = item_loss(own_P, other_PM, module.num_items)
    return {"loss": codes + config.items.weight * items, "generation": codes, "items": items}


def _joint_terms(
    module: RecoChain, batch: RankBatch, catalogue: Catalogue, config: RecoChainConfig
) -> dict[str, Tensor]:
    states_BSD, prefix = module.prefill(batch.item_BT, batch.length_B, catalogue)
    terms = _generation_terms(module, states_BSD, batch.item_BT, catalogue, config)
    terms = {
        name: of_whole(term, lambda batch: (batch.item_BT != PAD).sum(), batch)
        for name, term in terms.items()
    }
    with only_rows(partial(_ranked_rows, config=config), batch):
        rank = _rank_term(module, batch, prefix, catalogue, config)
    rank = of_whole(rank, partial(_num_ranked, config=config), batch)
    return terms | {"loss": terms["loss"] + config.rank.weight * rank, "rank": rank}


def _rank_term(
    module: RecoChain, batch: RankBatch, prefix: Prefix, catalogue: Catalogue, config: RecoChainConfig
) -> Tensor:
    """The ranking loss over the rows whose target the beam holds, or over all with forced positives."""
    row_H = _ranked_rows(batch, config).nonzero().squeeze(1)
    if not len(row_H):
        return module.rank_nothing()
    candidate_HK = batch.candidate_BK[row_H]
    found = retrieve(candidate_HK, batch.past_BF[row_H], catalogue.vector_NV, config.search.retrieved)
    prior_HKP = batch.prior_BKP[row_H]
    logits_HK = module.rank(select_rows(prefix, row_H), candidate_HK, prior_HKP, found, catalogue)
    return rank_loss(logits_HK, candidate_HK != PAD, config.rank.loss)


def _ranked_rows(batch: RankBatch, config: RecoChainConfig) -> Tensor:
    return torch.ones_like(batch.found_B) if config.rank.force_positive else batch.found_B


def _num_ranked(batch: RankBatch, config: RecoChainConfig) -> Tensor:
    """How many rows, or candidates of them, the ranking loss is the mean over."""
    kept_B = _ranked_rows(batch, config)
    return kept_B.sum() if config.rank.loss == "listwise" else (batch.candidate_BK[kept_B] != PAD).sum()


def calibrate(
    model: RecoChain, sequences: Sequences, examples: Examples, catalogue: Catalogue, config: RecoChainConfig
) -> None:
    """Start the ranker as the best linear map of the evidence for the mined candidates.

    Without it the network must find in a few thousand rows what a few weights say.
    """
    target_N = sequences.item[sequences.start[examples.user_N] + examples.position_N]
    label_NK = examples.beam_NK == target_N[:, None]
    row_H = np.flatnonzero(label_NK.any(axis=1))
    if not len(row_H):
        return
    order_HK = np.argsort(~label_NK[row_H], axis=1, kind="stable")  # the target comes first
    candidate_HK = torch.from_numpy(np.take_along_axis(examples.beam_NK[row_H], order_HK, axis=1))
    prior_HKP = torch.from_numpy(np.take_along_axis(examples.prior_NKP[row_H], order_HK[..., None], axis=1))
    prior_HKP = prior_HKP.masked_fill((candidate_HK == PAD).unsqueeze(-1), 0)
    parts = []
    for rows in np.array_split(np.arange(len(row_H)), -(-len(row_H) // 256)):
        past = [sequences.row(examples.user_N[i])[: examples.position_N[i]] for i in row_H[rows]]
        past_BF = history_tensor(past, config.search_history)
        found = retrieve(candidate_HK[rows], past_BF, catalogue.vector_NV, config.search.retrieved)
        parts.append(evidence(candidate_HK[rows], prior_HKP[rows], found, catalogue))
    model.set_evidence(*fit_evidence(torch.cat(parts), candidate_HK != PAD, config.rank.loss))


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
