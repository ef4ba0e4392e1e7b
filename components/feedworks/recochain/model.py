"""RecoChain: Harmonizing Generative Retrieval and Ranking in Chain-of-Recommendation (arXiv 2604.25787).

One decoder for both stages. A history is `BOS, s_1 .. s_L, s_1 .. s_L, ...`; the state before level l of an
item scores its code l. A candidate continues the history with its codes, the behaviours that resemble it
most and a rank token, whose state gives the click probability. Candidates do not see each other.

Shape legend: B rows, T history items, L levels, C codes, D width, K candidates, M retrieved behaviours,
F items of the full history, N items, V width of an item vector, P positions with a target; as the last axis
of `prior_BKP`, P is what the generator says of a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedworks.nn.transformer import Decoder, LayerCache, Prefix
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import ModelConfig

PAD = -1
NUM_PRIORS = 2
NUM_SIMILARITIES = 4
LATEST = 3


class Retrieved(NamedTuple):
    """The behaviours that a candidate brings along, oldest first; item -1 where the history was too short."""

    item_BKM: Tensor
    similarity_BKM: Tensor


class RecoChain(nn.Module):
    """Generator and ranker.

    Args:
        config: sizes of the decoder.
        num_items: N, rows of the item table.
        num_levels: L.
        num_codes: C.
        vector_width: V.
        num_blocks: parts of a vector that come from different sources.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_items: int,
        num_levels: int,
        num_codes: int,
        vector_width: int,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_items, self.num_levels, self.num_codes = num_items, num_levels, num_codes
        width = config.width
        self.code = nn.Embedding(num_levels * num_codes, width)
        self.item = nn.Embedding(num_items, width)
        self.vector = nn.Linear(vector_width, width, bias=False)
        self.bos = nn.Parameter(torch.empty(width))
        self.decoder = Decoder(
            width=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.hidden,
            dropout=config.dropout,
        )
        self.item_query = nn.Linear(width, width, bias=False) if config.item_scores else None
        self.rank_token = nn.Embedding(3, width)  # behaviour, candidate, missing behaviour
        self.similarity = nn.Embedding(config.similarity_buckets, width)
        self.rank_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        # What the generator says, and NUM_SIMILARITIES of each block of the vectors.
        self.evidence = nn.Linear(NUM_PRIORS + NUM_SIMILARITIES * num_blocks, 1)
        self.set_evidence([1.0])
        nn.init.zeros_(self.rank_head.get_submodule("2").get_parameter("weight"))
        self.dropout = nn.Dropout(config.dropout)
        tables = (self.code, self.item, self.vector, self.rank_token, self.similarity)
        for weight in (self.bos, *(table.weight for table in tables)):
            nn.init.normal_(weight, std=0.02)

    @classmethod
    def for_catalogue(cls, config: ModelConfig, catalogue: Catalogue) -> RecoChain:
        """Make a model of the catalogue's sizes."""
        return cls(
            config,
            num_items=catalogue.num_known,
            num_levels=catalogue.num_levels,
            num_codes=catalogue.num_codes,
            vector_width=catalogue.vector_NV.shape[1],
            num_blocks=len(catalogue.block_widths),
        )

    @torch.no_grad()
    def set_evidence(self, weights: Sequence[float], bias: float = 0.0) -> None:
        """Set the click logit of an untrained head: weights of the evidence, missing ones 0."""
        self.evidence.weight.zero_()
        self.evidence.weight[0, : len(weights)] = torch.tensor(weights)
        self.evidence.bias.fill_(bias)

    def train_only_generator(self) -> None:
        """Leave out what stage I does not use, so that DDP has a gradient for every parameter."""
        self.requires_grad_(True)
        for part in self._rank_parts():
            part.requires_grad_(False)
        if not (self.config.item_tokens or self.config.item_scores):
            self.item.requires_grad_(False)
            self.vector.requires_grad_(False)

    def train_both(self, *, freeze_backbone: bool) -> None:
        """Train everything, or rank tokens and head alone on a frozen backbone."""
        self.requires_grad_(not freeze_backbone)
        for part in self._rank_parts():
            part.requires_grad_(True)

    def embed_codes(self, code: Tensor, level: int) -> Tensor:
        """Embed codes of one level as the next token of a branch: `(...)` to `(..., D)`."""
        return self._scaled(self.code(code + level * self.num_codes))

    def embed_items(self, item: Tensor, catalogue: Catalogue) -> Tensor:
        """Embed items as their L code tokens: `(...)` to `(..., L, D)`; padding gives arbitrary tokens."""
        item = item.clamp_min(0)
        offset_L = torch.arange(self.num_levels, device=item.device) * self.num_codes
        tokens = self.code(catalogue.code_NL[item] + offset_L)
        if self.config.item_tokens:
            last = tokens[..., -1:, :] + self._content(item, catalogue).unsqueeze(-2)
            tokens = torch.cat((tokens[..., :-1, :], last), dim=-2)
        return self._scaled(tokens)

    def prefill(self, item_BT: Tensor, length_B: Tensor, catalogue: Catalogue) -> tuple[Tensor, Prefix]:
        """Run histories once.

        Args:
            item_BT: item numbers, real ones first, -1 after them.
            length_B: items that branches may see; later ones only take part in the returned states.
            catalogue: codes and vectors of the items.

        Returns:
            states `(B, 1 + T * L, D)`, the one at place `t * L + l` being that before level l of item t, and
            the prefix for `Decoder.extend`.
        """
        tokens_BTLD = self.embed_items(item_BT, catalogue)
        bos_B1D = self._scaled(self.bos).expand(item_BT.shape[0], 1, -1)
        x_BSD = torch.cat((bos_B1D, tokens_BTLD.flatten(1, 2)), dim=1)
        return self.decoder.prefill(x_BSD, 1 + length_B * self.num_levels)

    def next_state(self, states_BSD: Tensor, length_B: Tensor) -> Tensor:
        """Pick the state `(B, D)` before the first code after the history."""
        row_B = torch.arange(states_BSD.shape[0], device=states_BSD.device)
        return states_BSD[row_B, length_B * self.num_levels]

    def code_logits(self, state: Tensor, level: int) -> Tensor:
        """Score the codes of one level: `(..., D)` to `(..., C)`; the output is tied to the input table."""
        return state @ self.level_codes(level).T

    def level_codes(self, level: int) -> Tensor:
        """The output rows `(C, D)` of one level."""
        return self.code.weight[level * self.num_codes : (level + 1) * self.num_codes]

    def target_states(self, states_BSD: Tensor, item_BT: Tensor) -> Tensor:
        """Pick the states `(P, L, D)` before the codes of every real item."""
        rows, length = item_BT.shape
        states_BTLD = states_BSD[:, :-1].reshape(rows, length, self.num_levels, -1)
        return states_BTLD[item_BT != PAD]

    def target_logits(self, states_PLD: Tensor) -> list[Tensor]:
        """Score codes at every real item: one `(P, C)` per level."""
        return [self.code_logits(states_PLD[:, level], level) for level in range(self.num_levels)]

    def item_scores(self, state_BD: Tensor, item_BK: Tensor, catalogue: Catalogue) -> Tensor:
        """Score whole items `(B, K)` by the state before their first code; 0 without `model.item_scores`."""
        if self.item_query is None:
            return state_BD.new_zeros(item_BK.shape)
        scores: Tensor = (
            self._content(item_BK, catalogue) @ self.item_query(state_BD).unsqueeze(-1)
        ).squeeze(-1)
        return scores

    def sampled_scores(self, state_PD: Tensor, target_P: Tensor, count: int, catalogue: Catalogue) -> Tensor:
        """Score `count` items drawn for all positions together, or the whole catalogue if `count` is 0.

        Returns:
            scores `(P, M)`, -inf where the position's own target was drawn.
        """
        if self.item_query is None:
            raise ValueError("model.item_scores is off: there is nothing to train")
        device = target_P.device
        drawn = torch.arange(self.num_items, device=device)
        if 0 < count < self.num_items:
            drawn = torch.randint(self.num_items, (count,), device=device)
        scores_PM: Tensor = self.item_query(state_PD) @ self._content(drawn, catalogue).T
        return scores_PM.masked_fill(drawn == target_P.unsqueeze(1), -torch.inf)

    def rank(
        self,
        prefix: Prefix,
        candidate_BK: Tensor,
        prior_BKP: Tensor,
        retrieved: Retrieved,
        catalogue: Catalogue,
        branch: tuple[LayerCache, ...] | None = None,
    ) -> Tensor:
        """Click logits `(B, K)` of candidates.

        A linear map of the evidence gives the start and the head corrects it: the head's last layer starts at
        zero, so that an untrained ranker keeps the generated order.

        Args:
            prefix: the prefilled histories.
            candidate_BK: item numbers; the logits of padding are arbitrary.
            prior_BKP: what the generator says: log-probability and item score.
            retrieved: what `retrieve` found for them.
            catalogue: codes and vectors of the items.
            branch: caches of the candidates' first L - 1 codes from the beam search; None computes them.
        """
        codes_BKLD = self.embed_items(candidate_BK, catalogue)
        x_BKQD = torch.cat(
            (
                codes_BKLD if branch is None else codes_BKLD[:, :, -1:],
                self._behaviour_tokens(retrieved, catalogue),
                self._scaled(self._content(candidate_BK, catalogue) + self.rank_token.weight[1]).unsqueeze(2),
            ),
            dim=2,
        )
        states_BK1D, _ = self.decoder.extend(x_BKQD, prefix, branch, last_only=True)
        logits_BK: Tensor = self.rank_head(states_BK1D[:, :, 0]).squeeze(-1)
        evidence_BKJ = evidence(candidate_BK, prior_BKP, retrieved, catalogue)
        total_BK: Tensor = logits_BK + self.evidence(evidence_BKJ).squeeze(-1)
        return total_BK

    def rank_nothing(self) -> Tensor:
        """Zero, with a gradient of zero for all that only `rank` may read.

        Processes that train together exchange the gradients that each of them has, which must be the same.
        """
        parts = (*self._rank_parts(), self.item, self.vector)
        total: Tensor = torch.stack([x.sum() for part in parts for x in part.parameters()]).sum()
        return total * 0

    def _rank_parts(self) -> tuple[nn.Module, ...]:
        return self.rank_token, self.similarity, self.rank_head, self.evidence

    def _behaviour_tokens(self, retrieved: Retrieved, catalogue: Catalogue) -> Tensor:
        item = retrieved.item_BKM
        buckets = self.config.similarity_buckets
        bucket = ((retrieved.similarity_BKM + 1) / 2 * buckets).long().clamp(0, buckets - 1)
        token = self._content(item, catalogue) + self.rank_token.weight[0] + self.similarity(bucket)
        missing = (item == PAD).unsqueeze(-1)
        return self._scaled(torch.where(missing, self.rank_token.weight[2], token))

    def _content(self, item: Tensor, catalogue: Catalogue) -> Tensor:
        item = item.clamp_min(0)
        known = (item < self.num_items).unsqueeze(-1)
        by_id = self.item(item.clamp_max(self.num_items - 1)) * known
        content: Tensor = by_id + self.vector(catalogue.vector_NV[item])
        return content

    def _scaled(self, token: Tensor) -> Tensor:
        # Tables start at 0.02, fit for tied outputs; tokens enter the decoder near unit size.
        scaled: Tensor = self.dropout(token * self.config.width**0.5)
        return scaled


def retrieve(candidate_BK: Tensor, past_BF: Tensor, vector_NV: Tensor, count: int) -> Retrieved:
    """Find the behaviours most like each candidate by cosine over the full history (the GSU of SIM).

    Args:
        candidate_BK: item numbers, -1 for padding.
        past_BF: full histories before the moment of the request, oldest first, -1 for padding.
        vector_NV: item vectors of length 1.
        count: M; fewer are real where the history is shorter.

    Returns:
        M behaviours per candidate in the order of time; equal similarities take the latest.
    """
    count_real = min(count, past_BF.shape[1])
    past_BVF = vector_NV[past_BF.clamp_min(0)].transpose(1, 2)
    cosine_BKF = vector_NV[candidate_BK.clamp_min(0)] @ past_BVF
    cosine_BKF = cosine_BKF.masked_fill((past_BF == PAD)[:, None, :], -torch.inf)
    newest_first = cosine_BKF.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count_real]
    place_BKM = (past_BF.shape[1] - 1 - newest_first).sort(dim=-1).values
    similarity_BKM = cosine_BKF.gather(-1, place_BKM)
    item_BKM = past_BF.unsqueeze(1).expand(-1, candidate_BK.shape[1], -1).gather(-1, place_BKM)
    missing = count - count_real
    return Retrieved(
        F.pad(item_BKM, (0, missing), value=PAD), F.pad(similarity_BKM, (0, missing), value=-1.0)
    )


def evidence(candidate_BK: Tensor, prior_BKP: Tensor, retrieved: Retrieved, catalogue: Catalogue) -> Tensor:
    """What speaks for a candidate without the ranker: `(B, K, NUM_PRIORS + NUM_SIMILARITIES * blocks)`.

    The generator's log-probability and item score; then for each block of the vectors the cosine with the
    retrieved behaviours: the largest, that of the latest, the largest of the `LATEST` latest, the mean; 0
    where nothing was retrieved.
    """
    columns = [prior_BKP.to(catalogue.vector_NV.dtype)]
    real_BKM = retrieved.item_BKM != PAD
    if not retrieved.item_BKM.shape[-1]:
        empty = columns[0].new_zeros(*candidate_BK.shape, NUM_SIMILARITIES * len(catalogue.block_widths))
        return torch.cat((columns[0], empty), dim=-1)
    behind_BKM = real_BKM.flip(-1).cumsum(-1).flip(-1)  # 1 for the latest real behaviour
    candidates = catalogue.vector_NV[candidate_BK.clamp_min(0)].split_with_sizes(
        catalogue.block_widths, dim=-1
    )
    behaviours = catalogue.vector_NV[retrieved.item_BKM.clamp_min(0)].split_with_sizes(
        catalogue.block_widths, dim=-1
    )
    for own_BKV, other_BKMV in zip(candidates, behaviours, strict=True):
        cosine_BKM = F.cosine_similarity(own_BKV.unsqueeze(2), other_BKMV, dim=-1)
        for kept in (real_BKM, real_BKM & (behind_BKM == 1), real_BKM & (behind_BKM <= LATEST)):
            columns.append(_largest(cosine_BKM, kept))
        count = real_BKM.sum(dim=-1, keepdim=True).clamp_min(1)
        columns.append(cosine_BKM.masked_fill(~real_BKM, 0).sum(dim=-1, keepdim=True) / count)
    return torch.cat(columns, dim=-1)


def _largest(cosine_BKM: Tensor, kept_BKM: Tensor) -> Tensor:
    largest = cosine_BKM.masked_fill(~kept_BKM, -torch.inf).amax(dim=-1, keepdim=True)
    return largest.masked_fill(largest == -torch.inf, 0)
