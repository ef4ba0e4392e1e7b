"""cache_attention, and new rows into the cache, in PyTorch operators.

Shape letters: B sequences, H query heads, G key and value heads, R = H / G, Q query rows per sequence (1 + m
new rows), N slots, L rows of a slot, D head width, P = m + k rows that may move. Of a run of slots: S slices,
P = N G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# A call's parallel regions cost the time in which a CPU reads about that many bytes (0.1 ms).
_CALL_BYTES = 2 << 20


def cache_attention(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """One call per run of slots on a CPU; elsewhere one masked product over all. As `cache_attention`."""
    run = _by_runs if query_BHQD.device.type == "cpu" else masked
    return run(query_BHQD, key_NGLD, value_NGLD, start_BQ, stop_BQ, slot_B, scale)


class _Slice(NamedTuple):
    """What one query row of a sequence reads: rows [start, stop) of a slot."""

    sequence: int
    slot: int
    start: int
    stop: int


class _Run(NamedTuple):
    """Slices of neighbouring slots, in their order, and the rows [start, stop) that hold all of them."""

    slices: list[_Slice]
    start: int
    stop: int

    @property
    def num_slots(self) -> int:
        """Slots from the first to the last, those between that are not asked for included."""
        return self.slices[-1].slot - self.slices[0].slot + 1

    def and_one(self, more: _Slice) -> _Run:
        """Return the run with one more slot behind it."""
        return _Run([*self.slices, more], min(self.start, more.start), max(self.stop, more.stop))

    @property
    def cost(self) -> int:
        """Rows that its products read."""
        return self.num_slots * (self.stop - self.start)


def _by_runs(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """The query heads of a group are the rows of one small matrix: no key is copied, few outside are read."""
    num_slots, num_groups, num_rows, width = key_NGLD.shape
    num_batch, num_heads, num_queries, _ = query_BHQD.shape
    query_BGRQD = query_BHQD.reshape(num_batch, num_groups, num_heads // num_groups, num_queries, width)
    out_BHQD = torch.zeros_like(query_BHQD, memory_format=torch.contiguous_format)
    out_BGRQD = out_BHQD.view(query_BGRQD.shape)
    slots = slot_B.tolist()
    row_bytes = 2 * num_groups * width * key_NGLD.element_size()
    # Products of half precision would round the scores to it.
    spare = 0 if query_BHQD.element_size() < 4 else _CALL_BYTES // max(1, row_bytes)
    for q, (starts, stops) in enumerate(zip(start_BQ.T.tolist(), stop_BQ.T.tolist(), strict=True)):
        slices = []
        for each in map(_Slice, range(num_batch), slots, starts, stops):
            if not 0 <= each.slot < num_slots or each.start < 0 or each.stop > num_rows:
                out_BGRQD[each.sequence, :, :, q] = torch.nan
            elif each.start < each.stop:
                slices.append(each)
        for run in _runs(slices, spare):
            _attend_run(query_BGRQD[:, :, :, q], key_NGLD, value_NGLD, run, scale, out_BGRQD[:, :, :, q])
    return out_BHQD


def _runs(slices: Sequence[_Slice], spare: int) -> list[_Run]:
    """Join neighbours in memory where one call reads at most `spare` rows more than two would."""
    runs: list[_Run] = []
    for each in sorted(slices, key=lambda each: each.slot):
        alone = _Run([each], each.start, each.stop)
        if runs and spare and runs[-1].slices[-1].slot < each.slot:
            joined = runs[-1].and_one(each)
            if joined.cost <= runs[-1].cost + alone.cost + spare:
                runs[-1] = joined
                continue
        runs.append(alone)
    return runs


def _attend_run(
    query_BGRD: Tensor, key_NGLD: Tensor, value_NGLD: Tensor, run: _Run, scale: float, out_BGRD: Tensor
) -> None:
    if len(run.slices) > 1:
        _attend_together(query_BGRD, key_NGLD, value_NGLD, run, scale, out_BGRD)
        # What a slot has outside of its slice may be anything, and 0 * NaN is NaN.
        wrong_B = out_BGRD.isnan().flatten(1).any(dim=1)
        if not wrong_B.any():
            return
        run = run._replace(slices=[each for each in run.slices if wrong_B[each.sequence]])
    for each in run.slices:
        rows = slice(each.start, each.stop)
        keys, values = key_NGLD[each.slot, :, rows], value_NGLD[each.slot, :, rows]
        out_BGRD[each.sequence] = _attend(query_BGRD[each.sequence], keys, values, scale)


def _attend_together(
    query_BGRD: Tensor, key_NGLD: Tensor, value_NGLD: Tensor, run: _Run, scale: float, out_BGRD: Tensor
) -> None:
    first, num_slots = run.slices[0].slot, run.num_slots
    rows = slice(run.start, run.stop)
    key_PLD, value_PLD = (x[first : first + num_slots, :, rows].flatten(0, 1) for x in (key_NGLD, value_NGLD))
    place_S = torch.tensor([each.slot - first for each in run.slices])
    sequence_S = torch.tensor([each.sequence for each in run.slices])
    query_NGRD = query_BGRD.new_zeros(num_slots, *query_BGRD.shape[1:])
    query_NGRD[place_S] = query_BGRD[sequence_S] * scale
    score_PRL = torch.bmm(query_NGRD.flatten(0, 1), key_PLD.transpose(1, 2))
    start_S1, stop_S1 = torch.tensor([each[2:] for each in run.slices])[:, :, None].unbind(dim=1)
    row_L = torch.arange(run.start, run.stop)
    outside_NL = torch.zeros(num_slots, len(row_L), dtype=torch.bool)
    outside_NL[place_S] = (row_L < start_S1) | (row_L >= stop_S1)
    score_NGRL = score_PRL.view(*query_NGRD.shape[:3], -1)
    score_NGRL.masked_fill_(outside_NL[:, None, None], -torch.inf)
    out_PRD = torch.bmm(score_PRL.softmax(dim=2), value_PLD)
    # Under autocast the products may come in half precision.
    out_BGRD[sequence_S] = out_PRD.view(query_NGRD.shape)[place_S].to(out_BGRD.dtype)


def _attend(query_GRD: Tensor, key_GLD: Tensor, value_GLD: Tensor, scale: float) -> Tensor:
    if query_GRD.dtype in (torch.float16, torch.bfloat16):  # products would round the scores to it
        rows = query_GRD[None], key_GLD[None], value_GLD[None]
        return F.scaled_dot_product_attention(*rows, scale=scale)[0]
    # For so few rows two products take 0.6 to 1 of the time of the fused form.
    score_GRL = torch.bmm(query_GRD * scale, key_GLD.transpose(1, 2))
    return torch.bmm(score_GRL.softmax(dim=2), value_GLD)


def masked(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """Everything in tensors, so that a GPU's queue never waits: it reads the whole cache of each sequence."""
    num_slots, num_groups, num_rows, width = key_NGLD.shape
    num_batch, num_heads, num_queries, _ = query_BHQD.shape
    inside_B = (slot_B >= 0) & (slot_B < num_slots)
    bad_BQ = (start_BQ < 0) | (stop_BQ > num_rows) | ~inside_B[:, None]
    row_L = torch.arange(num_rows, device=query_BHQD.device)
    seen_BQL = (row_L >= start_BQ[:, :, None]) & (row_L < stop_BQ[:, :, None]) & ~bad_BQ[:, :, None]
    chosen_B = torch.where(inside_B, slot_B, 0)
    key_BGLD, value_BGLD = key_NGLD[chosen_B], value_NGLD[chosen_B]
    # What no query reads may be anything, NaN too, and 0 * NaN is NaN.
    value_BGLD = value_BGLD.masked_fill(~seen_BQL.any(dim=1)[:, None, :, None], 0)
    kind = torch.promote_types(query_BHQD.dtype, torch.float32)
    query_BGRQD = query_BHQD.reshape(num_batch, num_groups, num_heads // num_groups, num_queries, width)
    score_BGRQL = torch.einsum("bgrqd,bgld->bgrql", query_BGRQD, key_BGLD).to(kind) * scale
    seen_BGRQL = seen_BQL[:, None, None]
    weight_BGRQL = score_BGRQL.masked_fill(~seen_BGRQL, -torch.inf).softmax(dim=-1)
    weight_BGRQL = weight_BGRQL.masked_fill(~seen_BGRQL, 0)  # a row without keys is 0 / 0
    out_BGRQD = torch.einsum("bgrql,bgld->bgrqd", weight_BGRQL.to(value_BGLD.dtype), value_BGLD)
    return out_BGRQD.flatten(1, 2).masked_fill(bad_BQ[:, None, :, None], torch.nan)


def write(
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    new_key_BGQD: Tensor,
    new_value_BGQD: Tensor,
    slot_B: Tensor,
    write_BQ: Tensor,
) -> None:
    """Put new keys and values into the rows `write_BQ`."""
    for cache, rows_BGQD in ((key_NGLD, new_key_BGQD), (value_NGLD, new_value_BGQD)):
        cache[slot_B[:, None], :, write_BQ] = rows_BGQD.transpose(1, 2)


def move(key_NGLD: Tensor, value_NGLD: Tensor, slot_B: Tensor, move_BP: Tensor) -> None:
    """Copy the first P rows of each slot to the rows `move_BP`: mostly to themselves."""
    if slot_B.device.type == "cpu":  # a row that stays need not be copied
        stay_P = torch.arange(move_BP.shape[1])
        moves_B = (move_BP != stay_P).any(dim=1)
        if not moves_B.any():
            return
        slot_B, move_BP = slot_B[moves_B], move_BP[moves_B]
    for cache in (key_NGLD, value_NGLD):
        rows_BPGD = cache[slot_B, :, : move_BP.shape[1]].transpose(1, 2)
        cache[slot_B[:, None], :, move_BP] = rows_BPGD
