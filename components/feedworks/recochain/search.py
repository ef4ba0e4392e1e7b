"""RecoChain (arXiv 2604.25787): constrained beam search over the trie, and the candidates that it yields.

The history's keys and values are stored once and shared by all beams; a beam keeps those of its own codes.
Shape legend: B rows, W beams, L levels, D width, K candidates, X most children of a node.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks.errors import ModelError
from feedworks.nn.transformer import LayerCache, Prefix, select_branches
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import SearchConfig
from feedworks.recochain.model import PAD, RecoChain, retrieve
from feedworks.recochain.trie import TrieLevel
from feedworks_kernels import BeamStep, beam_step

# Up to this share of the codes, the rows of the children are gathered instead of a product with all rows: a
# gathered row costs a CPU about as much as 20 rows of a product (an estimate from bandwidth, not a sweep).
FEW_CHILDREN = 1 / 16


class Beams(NamedTuple):
    """The best semantic IDs of each row, best first; score -inf where there are fewer than W.

    `branch` holds the keys and values of the first L - 1 codes, None if L is 1.
    """

    leaf_BW: Tensor
    code_BWL: Tensor
    score_BW: Tensor
    branch: tuple[LayerCache, ...] | None


class Candidates(NamedTuple):
    """The items behind the beams, most probable first; item -1 and log-probability -inf for padding."""

    item_BK: Tensor
    score_BK: Tensor
    beam_BK: Tensor


class Generated(NamedTuple):
    """The first half of the chain: candidates, and what the ranking pass continues from."""

    beams: Beams
    candidates: Candidates
    item_score_BK: Tensor
    prefix: Prefix
    branch: tuple[LayerCache, ...] | None


@torch.no_grad()
def beam_search(
    model: RecoChain, prefix: Prefix, state_BD: Tensor, catalogue: Catalogue, config: SearchConfig
) -> Beams:
    """Find the most probable existing semantic IDs.

    Args:
        model: in eval mode.
        prefix: the prefilled histories.
        state_BD: the state before the first code, see `RecoChain.next_state`.
        catalogue: holds the trie; nothing outside of it is ever returned.
        config: beam width and normalisation.

    Raises:
        ModelError: the model's logits are NaN or infinite.
    """
    num_rows, device = state_BD.shape[0], state_BD.device
    node = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
    score = torch.zeros(num_rows, 1, device=device)
    code = torch.zeros(num_rows, 1, 0, dtype=torch.long, device=device)
    state, branch = state_BD.unsqueeze(1), None
    row_B1 = torch.arange(num_rows, device=device).unsqueeze(1)
    for number, level in enumerate(catalogue.trie.levels):
        try:
            step = _step(model, number, level, state, score, node, config)
        except ValueError as error:
            raise ModelError(f"the model cannot generate ({error}); train it with a lower lr") from None
        score, node = step.score_BW, step.node_BW
        code = torch.cat((code[row_B1, step.parent_BW], step.code_BW.unsqueeze(-1)), dim=-1)
        if number + 1 < catalogue.num_levels:
            branch = select_branches(branch, step.parent_BW) if branch is not None else None
            token = model.embed_codes(step.code_BW, number).unsqueeze(2)
            states, branch = model.decoder.extend(token, prefix, branch)
            state = states[:, :, 0]
        elif branch is not None:
            branch = select_branches(branch, step.parent_BW)
    # Only a form that may wait names broken logits itself; a NaN goes through to the last step.
    if score.isnan().any():
        raise ModelError("the model cannot generate (a logit is NaN or +inf); train it with a lower lr")
    return Beams(node, code, score, branch)


def expand(beams: Beams, catalogue: Catalogue, bucket_cap: int, seen_BF: Tensor | None = None) -> Candidates:
    """List the W most probable items behind W beams: probability of the SID times share in its bucket.

    Args:
        beams: what the search found.
        catalogue: buckets and shares.
        bucket_cap: items of one semantic ID, the most popular ones.
        seen_BF: items to leave out, padded with -1.
    """
    start = catalogue.trie.bucket_start
    low_BW, high_BW = start[beams.leaf_BW].long(), start[beams.leaf_BW + 1].long()
    size_BW = (high_BW - low_BW).clamp_max(bucket_cap) * (beams.score_BW > -torch.inf)
    slot_X = torch.arange(int(size_BW.max().clamp_min(1)), device=start.device)
    place_BWX = (low_BW.unsqueeze(-1) + slot_X).clamp_max(catalogue.trie.num_items - 1)
    item_BWX = catalogue.trie.bucket_item[place_BWX].long()
    real_BWX = slot_X < size_BW.unsqueeze(-1)
    if seen_BF is not None:
        pairs = zip(item_BWX, seen_BF, strict=True)
        real_BWX = real_BWX & ~torch.stack([torch.isin(items, seen) for items, seen in pairs])
    score_BWX = beams.score_BW.unsqueeze(-1) + catalogue.log_share_N[item_BWX]
    best = score_BWX.masked_fill(~real_BWX, -torch.inf).flatten(1).sort(dim=1, descending=True, stable=True)
    # As many items as beams go on: buckets must not make the ranking pass several times as long.
    num_kept = int(real_BWX.flatten(1).sum(dim=1).max().clamp(1, beams.leaf_BW.shape[1]))
    score_BK, place_BK = best.values[:, :num_kept], best.indices[:, :num_kept]
    item_BK = item_BWX.flatten(1).gather(1, place_BK).masked_fill(score_BK == -torch.inf, PAD)
    return Candidates(item_BK, score_BK, place_BK // len(slot_X))


@torch.no_grad()
def generate(
    model: RecoChain,
    item_BT: Tensor,
    catalogue: Catalogue,
    config: SearchConfig,
    seen_BF: Tensor | None = None,
) -> Generated:
    """Prefill, beam search and buckets.

    Args:
        model: in eval mode.
        item_BT: what the decoder reads, padded with -1 on the right; every row holds an item.
        catalogue: codes, vectors and trie.
        config: widths of the search.
        seen_BF: items that must not be recommended, padded with -1.
    """
    length_B = (item_BT != PAD).sum(dim=1)
    states_BSD, prefix = model.prefill(item_BT, length_B, catalogue)
    state_BD = model.next_state(states_BSD, length_B)
    beams = beam_search(model, prefix, state_BD, catalogue, config)
    candidates = expand(beams, catalogue, config.bucket_cap, seen_BF)
    branch = None if beams.branch is None else select_branches(beams.branch, candidates.beam_BK)
    item_score_BK = model.item_scores(state_BD, candidates.item_BK, catalogue)
    return Generated(beams, candidates, item_score_BK, prefix, branch)


@torch.no_grad()
def rerank(
    model: RecoChain, generated: Generated, past_BF: Tensor, catalogue: Catalogue, config: SearchConfig
) -> Tensor:
    """Click logits `(B, K)` of generated candidates over the kept keys and values; -inf for padding.

    Args:
        model: in eval mode.
        generated: what `generate` returned.
        past_BF: what the search over the history reads, padded with -1 on the right.
        catalogue: codes and vectors.
        config: M.
    """
    item_BK = generated.candidates.item_BK
    found = retrieve(item_BK, past_BF, catalogue.vector_NV, config.retrieved)
    log_p_BK = generated.candidates.score_BK.masked_fill(item_BK == PAD, 0)
    prior_BKP = torch.stack((log_p_BK, generated.item_score_BK), dim=-1)
    logits_BK = model.rank(generated.prefix, item_BK, prior_BKP, found, catalogue, generated.branch)
    return logits_BK.masked_fill(item_BK == PAD, -torch.inf)


@torch.no_grad()
def item_log_p(
    model: RecoChain,
    prefix: Prefix,
    state_BD: Tensor,
    item_BK: Tensor,
    catalogue: Catalogue,
    config: SearchConfig,
) -> Tensor:
    """Log-probability `(B, K)` of given items, as beam search and `expand` would score them."""
    code_BKL, node_BKL = catalogue.code_NL[item_BK], catalogue.node_NL[item_BK]
    state, branch = state_BD.unsqueeze(1).expand(-1, item_BK.shape[1], -1), None
    total = torch.zeros(item_BK.shape, device=item_BK.device)
    for number, level in enumerate(catalogue.trie.levels):
        children = _children(model, number, level, state, node_BKL[..., number], config)
        own = children.code_BWX == code_BKL[..., number, None]
        total = total + children.log_p_BWX.masked_fill(~own, 0).sum(dim=-1)
        if number + 1 < catalogue.num_levels:
            token = model.embed_codes(code_BKL[..., number], number).unsqueeze(2)
            states, branch = model.decoder.extend(token, prefix, branch)
            state = states[:, :, 0]
    return total + catalogue.log_share_N[item_BK]


class _Children(NamedTuple):
    """The children of each beam, padded to X: code -1 and log-probability -inf where there are none."""

    code_BWX: Tensor
    node_BWX: Tensor
    log_p_BWX: Tensor


def _step(
    model: RecoChain,
    number: int,
    level: TrieLevel,
    state_BWD: Tensor,
    score_BW: Tensor,
    node_BW: Tensor,
    config: SearchConfig,
) -> BeamStep:
    # On CUDA the product with all rows is short, and to ask for the widest node would wait for the device.
    if config.normalise == "children" and not state_BWD.is_cuda:
        widest = int((level.child_start[node_BW + 1] - level.child_start[node_BW]).max())
        if widest <= FEW_CHILDREN * model.num_codes:
            children = _children(model, number, level, state_BWD, node_BW, config)
            return _keep_best(children, score_BW, config.beam)
    logits_BWC = model.code_logits(state_BWD, number)
    return beam_step(
        logits_BWC, score_BW, node_BW, level.child_start, level.child_code, config.beam, config.normalise
    )


def _children(
    model: RecoChain,
    number: int,
    level: TrieLevel,
    state_BWD: Tensor,
    node_BW: Tensor,
    config: SearchConfig,
) -> _Children:
    """Score children by reading only their output rows, where the normalisation allows that."""
    low_BW, high_BW = level.child_start[node_BW].long(), level.child_start[node_BW + 1].long()
    node_BWX = low_BW.unsqueeze(-1) + torch.arange(int((high_BW - low_BW).max()), device=low_BW.device)
    real_BWX = node_BWX < high_BW.unsqueeze(-1)
    code_BWX = level.child_code[node_BWX.clamp_max(level.child_code.shape[0] - 1)].long()
    if config.normalise == "children" and code_BWX.shape[-1] <= FEW_CHILDREN * model.num_codes:
        rows_BWXD = F.embedding(code_BWX, model.level_codes(number))
        logits_BWX = (rows_BWXD @ state_BWD.unsqueeze(-1)).squeeze(-1)
    else:
        logits_BWC = model.code_logits(state_BWD, number)
        logits_BWX = logits_BWC.gather(-1, code_BWX)
    logits_BWX = logits_BWX.masked_fill(~real_BWX, -torch.inf)
    every = logits_BWX if config.normalise == "children" else logits_BWC
    log_p_BWX = logits_BWX - every.logsumexp(dim=-1, keepdim=True)
    return _Children(code_BWX.masked_fill(~real_BWX, -1), node_BWX, log_p_BWX)


def _keep_best(children: _Children, score_BW: Tensor, beam: int) -> BeamStep:
    """Keep the best `beam` children over all beams, in the order that `beam_step` documents."""
    width = children.code_BWX.shape[-1]
    flat_BF = (
        (score_BW.unsqueeze(-1) + children.log_p_BWX).flatten(1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    )
    best = flat_BF.sort(dim=1, descending=True, stable=True)
    score, place = best.values[:, :beam], best.indices[:, :beam]
    dead = score == -torch.inf
    kept = (
        place // width,
        children.code_BWX.flatten(1).gather(1, place),
        children.node_BWX.flatten(1).gather(1, place),
    )
    missing = (0, beam - score.shape[1])
    parent, code, node = (F.pad(column.masked_fill(dead, 0), missing) for column in kept)
    return BeamStep(F.pad(score, missing, value=-torch.inf), parent, code, node)
