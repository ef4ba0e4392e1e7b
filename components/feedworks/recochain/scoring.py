"""RecoChain (arXiv 2604.25787): run the whole chain over many users, batched by length of history.

Shape legend: U users, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from feedworks.progress import progress
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import SearchConfig
from feedworks.recochain.data import history_tensor
from feedworks.recochain.model import NUM_PRIORS, PAD, RecoChain
from feedworks.recochain.search import generate, item_log_p, rerank
from feedworks.training.bucketing import length_batches

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Scored(NamedTuple):
    """Candidates of all users in generation order, padded with -1, and their scores.

    The log-probability and the ranking logit are -inf for padding, the item score is 0. `invalid_rate` is the
    share of generated semantic IDs that belong to no item.
    """

    item_UK: IntArray
    generation_UK: FloatArray
    item_score_UK: FloatArray
    rank_UK: FloatArray
    invalid_rate: float

    def reranked(self) -> IntArray:
        """The same candidates in the order of the ranking logits; padding stays last."""
        order = np.argsort(-self.rank_UK, axis=1, kind="stable")
        return np.take_along_axis(self.item_UK, order, axis=1)


class Window(NamedTuple):
    """How many of the latest items the decoder and the search over the history read.

    With `search=0` nothing is ranked. `exclude_seen` leaves out the items of the whole history.
    """

    history: int
    search: int = 0
    exclude_seen: bool = False


def score_users(
    model: RecoChain,
    catalogue: Catalogue,
    histories: Sequence[npt.ArrayLike],
    search: SearchConfig,
    window: Window,
    batch_size: int = 256,
    label: str = "score users",
) -> Scored:
    """Recommend for every history; all must hold at least one item.

    Args:
        model: in eval mode, on the catalogue's device.
        catalogue: codes, vectors and trie.
        histories: item numbers, oldest first.
        search: widths of beam search and of the search over the history.
        window: what is read; where nothing is ranked the ranking logits are -inf.
        batch_size: users at once.
        label: name of the progress bar.
    """
    width = search.beam
    item_UK = np.full((len(histories), width), -1, dtype=np.int64)
    generation_UK = np.full((len(histories), width), -np.inf, dtype=np.float32)
    rank_UK, item_score_UK = generation_UK.copy(), np.zeros_like(generation_UK)
    device = catalogue.code_NL.device
    num_sids = num_invalid = 0
    batches = length_batches([min(np.size(h), window.history) for h in histories], batch_size)
    with torch.inference_mode():
        for rows in progress(batches, label=label):
            item_BT = history_tensor([histories[i] for i in rows], window.history).to(device)
            past_BF = history_tensor([histories[i] for i in rows], max(window.search, 1)).to(device)
            seen_BF = _whole(histories, rows).to(device) if window.exclude_seen else None
            found = generate(model, item_BT, catalogue, search, seen_BF)
            codes_ML = found.beams.code_BWL[found.beams.score_BW > -torch.inf]
            num_sids += len(codes_ML)
            num_invalid += int((catalogue.trie.find(codes_ML) < 0).sum())
            count = found.candidates.item_BK.shape[1]
            item_UK[rows, :count] = found.candidates.item_BK.cpu().numpy()
            generation_UK[rows, :count] = found.candidates.score_BK.float().cpu().numpy()
            real_BK = found.candidates.item_BK != PAD
            item_score_UK[rows, :count] = (found.item_score_BK * real_BK).float().cpu().numpy()
            if window.search:
                logits_BK = rerank(model, found, past_BF, catalogue, search)
                rank_UK[rows, :count] = logits_BK.float().cpu().numpy()
    used = max(1, int((item_UK >= 0).sum(axis=1).max(initial=0)))
    rate = num_invalid / max(1, num_sids)
    generation_UK, item_score_UK, rank_UK = (
        table[:, :used] for table in (generation_UK, item_score_UK, rank_UK)
    )
    return Scored(item_UK[:, :used], generation_UK, item_score_UK, rank_UK, rate)


def score_targets(
    model: RecoChain,
    catalogue: Catalogue,
    histories: Sequence[npt.ArrayLike],
    target_U: IntArray,
    search: SearchConfig,
    max_history: int,
    batch_size: int = 256,
) -> FloatArray:
    """What the generator says of one given item per history: `(U, 2)`, log-probability and item score."""
    prior_UP = np.empty((len(histories), NUM_PRIORS), dtype=np.float32)
    device = catalogue.code_NL.device
    batches = length_batches([min(np.size(h), max_history) for h in histories], batch_size)
    with torch.inference_mode():
        for rows in progress(batches, label="score targets"):
            item_BT = history_tensor([histories[i] for i in rows], max_history).to(device)
            length_B = (item_BT != PAD).sum(dim=1)
            states_BSD, prefix = model.prefill(item_BT, length_B, catalogue)
            target_B1 = torch.from_numpy(target_U[rows]).to(device).unsqueeze(1)
            state_BD = model.next_state(states_BSD, length_B)
            log_p_B1 = item_log_p(model, prefix, state_BD, target_B1, catalogue, search)
            score_B1 = model.item_scores(state_BD, target_B1, catalogue)
            prior_UP[rows] = torch.cat((log_p_B1, score_B1), dim=1).float().cpu().numpy()
    return prior_UP


def _whole(histories: Sequence[npt.ArrayLike], rows: IntArray) -> torch.Tensor:
    return history_tensor([histories[i] for i in rows], max(np.size(histories[i]) for i in rows))
