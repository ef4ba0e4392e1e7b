"""Whole searches inside a set of stored paths, for benches: by `beam_step`, and two public ways.

`HfPrefix`: the prefix function of Hugging Face generation: a Python call for every beam returns the codes
that may follow, the other logits of the full vocabulary are masked.
`Static`: the loop of STATIC (Su et al., arXiv 2602.22647; public code youtube/static-constraint-decoding),
written anew from its description: dense tables over the first two codes, sparse rows behind them, log-softmax
and top-k over the full vocabulary.

Shape letters: K live beams, C codes, W beams kept, L levels, M codes considered per beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from feedworks_kernels.beam_step import BeamStep, beam_step

# (step, codes so far (K, step)) -> logits (K, C); stands for the model.
Model = Callable[[int, Tensor], Tensor]


class Level(Protocol):
    """The edges that leave one level's nodes, as `beam_step` takes them."""

    @property
    def child_start(self) -> Tensor:
        """Where each node's edges begin in `child_code`: integers (num_nodes + 1,)."""

    @property
    def child_code(self) -> Tensor:
        """The code of each edge: integers (num_children,), rising within a node."""


class Decoded(NamedTuple):
    """The beams at the end, best first."""

    sid_WL: Tensor
    score_W: Tensor


def by_steps(levels: Sequence[Level], model: Model, width: int) -> Decoded:
    """Search with `width` beams by `beam_step`."""
    device = levels[0].child_code.device
    score_BK = torch.zeros(1, 1, device=device)
    node_BK, sid_KL = (torch.zeros(1, num, dtype=torch.int64, device=device) for num in (1, 0))
    for number, level in enumerate(levels):
        logits_BKC = model(number, sid_KL).unsqueeze(0)
        step = beam_step(logits_BKC, score_BK, node_BK, level.child_start, level.child_code, width)
        score_BK, node_BK = step.score_BW, step.node_BW
        sid_KL = torch.cat([sid_KL.index_select(0, step.parent_BW[0]), step.code_BW.view(-1, 1)], dim=1)
    return Decoded(sid_KL, score_BK[0])


class HfPrefix:
    """Masks with `prefix_allowed_tokens_fn`, then takes the best of all beams times all codes."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self._num_levels = len(levels)
        self._allowed: dict[tuple[int, ...], list[int]] = {}
        prefixes: list[tuple[int, ...]] = [()]
        for number, level in enumerate(levels, start=1):
            codes = level.child_code.tolist()
            children = [codes[low:high] for low, high in pairwise(level.child_start.tolist())]
            self._allowed.update(zip(prefixes, children, strict=True))
            if number < len(levels):
                rows = zip(prefixes, children, strict=True)
                prefixes = [(*prefix, code) for prefix, row in rows for code in row]

    def allowed_tokens(self, prefix: Tensor) -> list[int]:
        """Return the codes that may follow one beam's codes, none where the beam left the set."""
        return self._allowed.get(tuple(prefix.tolist()), [])

    def decode(self, model: Model, width: int) -> Decoded:
        """Search with `width` beams."""
        sid_KL, score_K = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1)
        for step in range(self._num_levels):
            log_p_KC = torch.log_softmax(model(step, sid_KL), dim=1)
            mask_KC = torch.full_like(log_p_KC, -torch.inf)
            for beam, prefix in enumerate(sid_KL):
                mask_KC[beam, self.allowed_tokens(prefix)] = 0
            total_KC = log_p_KC + mask_KC + score_K.unsqueeze(1)
            score_K, best = total_KC.view(-1).topk(min(width, total_KC.numel()))
            parent, code = best // total_KC.shape[1], best % total_KC.shape[1]
            sid_KL = torch.cat([sid_KL.index_select(0, parent), code.unsqueeze(1)], dim=1)
        return Decoded(sid_KL, score_K)


class Static:
    """Dense tables for the first two codes (C^2 entries each), packed sparse rows for the others."""

    def __init__(self, levels: Sequence[Level], num_codes: int) -> None:
        first, second, *tail = levels
        on = first.child_code.device
        self._start_C = torch.zeros(num_codes, dtype=torch.bool, device=on)
        self._start_C[first.child_code.long()] = True
        parents = first.child_code.long().repeat_interleave(second.child_start.diff())
        children = second.child_code.long()
        self._mask_CC = torch.zeros(num_codes, num_codes, dtype=torch.bool, device=on)
        self._mask_CC[parents, children] = True
        self._state_CC = torch.zeros(num_codes, num_codes, dtype=torch.int32, device=on)
        self._state_CC[parents, children] = torch.arange(len(parents), dtype=torch.int32, device=on)
        # The edges of a state are rows (code, next state). States have the numbers of the trie's nodes.
        self._edges = [
            torch.stack(
                [level.child_code, torch.arange(len(level.child_code), dtype=torch.int32, device=on)], dim=1
            )
            for level in tail
        ]
        self._edge_start = [level.child_start.long() for level in tail]
        self._most_children = [int(level.child_start.diff().max()) for level in levels]

    def index_bytes(self) -> int:
        """Bytes of all tables."""
        tables = [self._start_C, self._mask_CC, self._state_CC, *self._edges, *self._edge_start]
        return sum(table.nbytes for table in tables)

    def decode(self, model: Model, width: int) -> Decoded:
        """Search with `width` beams."""
        sid_WL = torch.zeros(1, 0, dtype=torch.int64, device=self._start_C.device)
        score_W = state_W = None
        for step in range(len(self._most_children)):
            logits_KC = model(step, sid_WL)
            if score_W is None or state_W is None:
                log_p_KC = torch.where(self._start_C, torch.log_softmax(logits_KC, dim=1), -torch.inf)
                score_W, code_W = log_p_KC[0].topk(min(width, log_p_KC.shape[1]))
                sid_WL, state_W = code_W.unsqueeze(1), code_W
                continue
            score_W, parent_W, code_W, state_W = self.step(step, logits_KC, score_W, state_W, width)
            sid_WL = torch.cat([sid_WL.index_select(0, parent_W), code_W.unsqueeze(1)], dim=1)
        assert score_W is not None
        return Decoded(sid_WL, score_W)

    def step(self, step: int, logits_KC: Tensor, score_K: Tensor, state_K: Tensor, width: int) -> BeamStep:
        """Extend the beams; before step 1 a state is the first code, later the number of a node."""
        log_p_KC, most = torch.log_softmax(logits_KC, dim=1), self._most_children[step]
        if step == 1:
            # As many codes per beam as beams are kept, or as a node has children: nothing is lost.
            limit = min(width, most)
            log_p_KM, code_KM, state_KM = self._dense(log_p_KC, state_K, limit)
        else:
            limit = most
            log_p_KM, code_KM, state_KM = self._sparse(log_p_KC, state_K, limit, step - 2)
        total_KM = score_K.unsqueeze(1) + log_p_KM
        score_W, best_W = total_KM.view(-1).topk(min(width, total_KM.numel()))
        code_W = code_KM.reshape(-1).index_select(0, best_W)
        state_W = state_KM.reshape(-1).index_select(0, best_W)
        return BeamStep(score_W, best_W // limit, code_W, state_W)

    def _dense(self, log_p_KC: Tensor, code_K: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        log_p_KC = torch.where(self._mask_CC.index_select(0, code_K), log_p_KC, -torch.inf)
        log_p_KM, code_KM = log_p_KC.topk(limit, dim=1)
        return log_p_KM, code_KM, self._state_CC[code_K.unsqueeze(1), code_KM]

    def _sparse(
        self, log_p_KC: Tensor, state_K: Tensor, limit: int, table: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        start, edges = self._edge_start[table], self._edges[table]
        low_K = start[state_K.long()]
        count_K = start[state_K.long() + 1] - low_K
        offset_M = torch.arange(limit, device=low_K.device)
        place_KM = (low_K.unsqueeze(1) + offset_M).clamp_max(len(edges) - 1)
        code_KM, state_KM = edges[place_KM].unbind(dim=2)
        log_p_KM = log_p_KC.gather(1, code_KM.long())
        inside_KM = offset_M < count_K.unsqueeze(1)
        return torch.where(inside_KM, log_p_KM, -torch.inf), code_KM.long(), state_KM
