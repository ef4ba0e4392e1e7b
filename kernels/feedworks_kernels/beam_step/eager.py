"""beam_step over the children that exist: one pass over the logits, then few and small PyTorch operations.

The children of each beam are one row of a table as wide as the largest family, copied as they stand in
`child_code`; the places behind a family's end score -inf. Where such a table would be mostly empty, a large
family takes several rows.

An operation that finds its code and data out of the cache, as behind a model, costs some 10 us, a parallel
one more, and far more while another program has the second core: so their number matters, not size alone.

Shape letters: B searches, K live beams of each, R = B * K, C codes, W beams kept, M rows of one block,
Q rows of children of one search, P = B * Q, X places of a row, F = Q * X, N places that are chosen.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks_kernels.beam_step.best import Best, best_of, best_of_rows

# Up to this many logits one operation that does all takes less time than several that do their parts better.
_FEW_LOGITS = 1 << 17
# Logits of one block: three passes over 2 MiB stay near the cores. A GPU wants few launches instead.
_BLOCK_BYTES, _BLOCK_BYTES_CUDA = 2 << 20, 1 << 28
# Up to this many places nobody asks how many of them are empty.
_FEW_PLACES = 1 << 15
# Rows are made a multiple of this, so that a table falls into groups of equal size.
_ROUND = 16
# Within these bounds a sum of exponentials taken without subtracting the maximum has lost nothing in fp32.
_SAFE_SUM = (1e-20, 1e30)


class _Beams(NamedTuple):
    """What is known of every beam, and how its children are normalised."""

    logits_RC: Tensor
    score_R: Tensor  # in the type of the result; -inf for an empty beam
    by_children: bool


class _Table(NamedTuple):
    """Row p holds the nodes start[p] .. start[p] + count[p] - 1, children of one beam in order of code."""

    start_P: Tensor
    count_P: Tensor
    beam_P: Tensor | None  # the row's beam, of R; None: row p is beam p
    childless_R: Tensor | None  # None: every beam has a child
    width: int
    full: bool  # no place is empty


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, ...]:
    """Lay out, score, choose. Arguments and result as `feedworks_kernels.beam_step`, which checks them."""
    num_searches, num_codes = score_BK.shape[0], logits_BKC.shape[2]
    work = torch.float64 if logits_BKC.dtype == torch.float64 else torch.float32
    score_R = score_BK.reshape(-1).to(work)
    split = per_beam is None  # else a beam's children are needed in one row
    table = _table(node_BK.reshape(-1), score_R, num_searches, child_start, child_code.shape[0], split)
    if not table.width:
        nothing_BW = score_R.new_full((num_searches, width), -torch.inf)
        return nothing_BW, *(torch.zeros_like(nothing_BW, dtype=torch.int64) for _ in range(3))
    beams = _Beams(logits_BKC.reshape(-1, num_codes), score_R, normalise == "children")
    # A family as large as the codebook is the codebook.
    whole = table.full and table.width == num_codes
    code_PX = None if whole else _codes(table, child_code, num_codes)
    score_PX = best_of_rows(_scores(beams, table, code_PX), per_beam)
    best = None if score_PX is None else best_of(score_PX.view(num_searches, -1), width)
    if best is None:
        score_PX = best_of_rows(_careful_scores(beams, table, code_PX), per_beam)
        assert score_PX is not None
        best = best_of(score_PX.view(num_searches, -1), width)
    if best is None:
        raise ValueError("score: a live beam's is NaN; expected finite values or -inf")
    return _unpack(best, table, code_PX, width, score_BK.shape[1])


def _table(
    node_R: Tensor, score_R: Tensor, num_searches: int, child_start: Tensor, num_children: int, split: bool
) -> _Table:
    if not node_R.numel():
        return _Table(node_R, node_R, None, None, 0, False)
    start_R, count_R = _families(node_R, score_R, child_start)
    least, most = (int(bound) for bound in torch.aminmax(count_R))
    if least < 0:
        raise ValueError("child_start: falls from a node to the next; expected rising or equal places")
    childless_R = count_R == 0 if least == 0 else None
    num_beams = node_R.shape[0]
    if num_beams * most > _FEW_PLACES and least < most:
        total = int(count_R.sum())
        width = total // num_beams
        width = max(4, 1 << width.bit_length()) if width < _ROUND else -(-width // _ROUND) * _ROUND
        if split and num_beams * most > 4 * total and most > 2 * width:
            return _split(start_R.view(num_searches, -1), count_R.view(num_searches, -1), width, childless_R)
        most = min(-(-most // _ROUND) * _ROUND, num_children)
    return _Table(start_R, count_R, None, childless_R, most, least == most)


def _families(node_R: Tensor, score_R: Tensor, child_start: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the first child, and number of children."""
    for only_live in (False, True):
        if only_live or node_R.is_cuda:  # an empty beam's node may be any number
            node_R = node_R * (score_R > -torch.inf)
        try:
            start_R = child_start.index_select(0, node_R)
            return start_R, child_start.index_select(0, node_R + 1).sub_(start_R)
        except IndexError:
            continue
    raise ValueError(f"node: a live beam is outside [0, {child_start.shape[0] - 1})")


def _split(start_BK: Tensor, count_BK: Tensor, width: int, childless_R: Tensor | None) -> _Table:
    """Give a family as many rows of `width` places as it needs, every search as many as the largest needs."""
    num_searches, num_beams = count_BK.shape
    rows_BK = (count_BK + (width - 1)) // width
    end_BK = rows_BK.cumsum(1)
    row_BQ = torch.arange(int(end_BK[:, -1].max()), device=count_BK.device).repeat(num_searches, 1)
    # Rows behind the last family fall to the last beam, skip all of its children and stay empty.
    beam_BQ = torch.searchsorted(end_BK, row_BQ, right=True).clamp_max_(num_beams - 1)
    skipped_BQ = (row_BQ - (end_BK - rows_BK).gather(1, beam_BQ)) * width
    left_BQ = (count_BK.gather(1, beam_BQ) - skipped_BQ).clamp_(0, width)
    start_BQ = start_BK.gather(1, beam_BQ) + skipped_BQ * (left_BQ > 0)
    first_B1 = torch.arange(0, count_BK.numel(), num_beams, device=count_BK.device).unsqueeze(1)
    return _Table(
        start_BQ.view(-1), left_BQ.view(-1), (beam_BQ + first_B1).view(-1), childless_R, width, False
    )


def _codes(table: _Table, child_code: Tensor, num_codes: int) -> Tensor:
    """Codes of all places, copied in stretches; what stands behind a family belongs to another one."""
    num_children = child_code.shape[0]
    code_PX = None
    if table.width <= num_children and not child_code.is_cuda:
        try:
            code_PX = child_code.unfold(0, table.width, 1).index_select(0, table.start_P)
        except IndexError:
            code_PX = None  # the stretch of a late family would reach beyond the end
    if code_PX is None:  # copied from further left, and moved
        end = int((table.start_P + table.count_P).max())
        if int(table.start_P.min()) < 0:
            raise ValueError(f"child_start: a node's children start at {int(table.start_P.min())}")
        if end > num_children:
            raise ValueError(f"child_start: a node's children end at {end}, child_code at {num_children}")
        last = num_children - table.width
        code_PX = child_code.unfold(0, table.width, 1).index_select(0, table.start_P.clamp_max(last))
        moved_P1 = (table.start_P - last).clamp_min_(0).unsqueeze(1)
        place_X = torch.arange(table.width, device=child_code.device)
        code_PX = code_PX.gather(1, (place_X + moved_P1).clamp_max_(table.width - 1))
    least, most = (int(bound) for bound in torch.aminmax(code_PX))
    if least < 0 or most >= num_codes:
        raise ValueError(f"child_code: {least} .. {most} exceeds the {num_codes} logits of a beam")
    return code_PX


def _scores(beams: _Beams, table: _Table, code_PX: Tensor | None) -> Tensor | None:
    """Score of every place, -inf where it is empty; None if a logit is NaN, +inf or far from 0."""
    logits_RC, shift_R = beams.logits_RC, beams.score_R
    if beams.by_children:
        x_PX = _with_holes(_take(logits_RC, table, code_PX).to(shift_R.dtype), table)
        sum_R, _ = _power_sums(x_PX, None, shift_R.dtype)
        if table.beam_P is not None:
            sum_R = torch.zeros_like(shift_R).index_add_(0, table.beam_P, sum_R)
        if table.childless_R is not None:
            sum_R += table.childless_R
    elif _at_once(logits_RC, table):
        log_p_PX = _log_softmax(logits_RC, table, code_PX, shift_R.dtype)
        # A row with a NaN or +inf is all NaN. With a child it would come out as the best.
        if table.childless_R is not None and not logits_RC.amax() < torch.inf:
            return None
        return _shifted(_with_holes(log_p_PX, table), shift_R, table)
    else:
        in_passing = code_PX if table.beam_P is None else None
        sum_R, taken_PX = _power_sums(logits_RC, in_passing, shift_R.dtype)
        x_PX = _take(logits_RC, table, code_PX) if taken_PX is None else taken_PX
        x_PX = _with_holes(x_PX.to(shift_R.dtype), table)
    least, most = (float(bound) for bound in torch.aminmax(sum_R))
    if not (_SAFE_SUM[0] < least and most < _SAFE_SUM[1]):
        return None
    return _shifted(x_PX, shift_R - sum_R.log_(), table)


def _careful_scores(beams: _Beams, table: _Table, code_PX: Tensor | None) -> Tensor:
    """The same for any logits.

    Raises:
        ValueError: NaN or +inf for a live beam.
    """
    logits_RC = beams.logits_RC.to(beams.score_R.dtype)
    live_R = beams.score_R > -torch.inf
    live_P = live_R if table.beam_P is None else live_R.index_select(0, table.beam_P)
    place_X = torch.arange(table.width, device=logits_RC.device)
    empty_PX = place_X >= (table.count_P * live_P).unsqueeze(1)
    x_PX = _take(logits_RC, table, code_PX).masked_fill(empty_PX, -torch.inf)
    norm_R = torch.logsumexp(x_PX if beams.by_children else logits_RC, dim=1)
    if beams.by_children and table.beam_P is not None:
        high_R = norm_R.new_full(live_R.shape, -torch.inf)
        high_R = high_R.scatter_reduce(0, table.beam_P, norm_R, "amax")
        high_R.masked_fill_(high_R == -torch.inf, 0)
        power_P = (norm_R - high_R.index_select(0, table.beam_P)).exp_()
        norm_R = high_R + torch.zeros_like(high_R).index_add_(0, table.beam_P, power_P).log_()
    norm_R = norm_R.masked_fill(~live_R, 0)
    if not (norm_R < torch.inf).all():
        raise ValueError("logits: a live beam holds NaN or +inf; expected finite values or -inf")
    # Nothing but -inf, or no child at all: what is there to be shifted is -inf and stays so.
    return _shifted(x_PX, beams.score_R - norm_R.masked_fill_(norm_R == -torch.inf, 0), table)


def _take(x_RC: Tensor, table: _Table, code_PX: Tensor | None) -> Tensor:
    if code_PX is None:
        return x_RC
    if table.beam_P is None:
        return x_RC.gather(1, code_PX)
    place_PX = code_PX + table.beam_P.mul(x_RC.shape[1]).unsqueeze(1)
    return x_RC.reshape(-1).index_select(0, place_PX.view(-1)).view(place_PX.shape)


def _with_holes(x_PX: Tensor, table: _Table) -> Tensor:
    """Put -inf into empty places, in place; a NaN or +inf becomes NaN there."""
    if table.full:
        return x_PX
    # Rows 0 .. 0 -inf .. -inf are copied: comparing and filling take five times as long.
    ruler = _ruler(table.width, x_PX.dtype, x_PX.device)
    return x_PX.add_(ruler.unfold(0, table.width, 1).index_select(0, table.width - table.count_P))


@lru_cache(maxsize=64)
def _ruler(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    ruler = torch.zeros(2 * width, dtype=dtype, device=device)
    ruler[width:] = -torch.inf
    return ruler


def _shifted(x_PX: Tensor, shift_R: Tensor, table: _Table) -> Tensor:
    shift_P = shift_R if table.beam_P is None else shift_R.index_select(0, table.beam_P)
    # Full tables may be the caller's logits: not to be written to.
    return x_PX + shift_P.unsqueeze(1) if table.full else x_PX.add_(shift_P.unsqueeze(1))


def _at_once(logits_RC: Tensor, table: _Table) -> bool:
    """Whether a single operation for the normaliser is faster: few logits, or each operation has a price."""
    many_threads = torch.get_num_threads() > 1 and table.beam_P is None
    return logits_RC.numel() <= _FEW_LOGITS or logits_RC.is_cuda or many_threads


def _log_softmax(x_RC: Tensor, table: _Table, code_PX: Tensor | None, work: torch.dtype) -> Tensor:
    """Log-probability of every place, taken block by block while it is in the cache."""
    rows = _block_rows(x_RC, work)
    if rows >= len(x_RC) or code_PX is None or table.beam_P is not None:
        return _take(torch.log_softmax(x_RC, dim=1, dtype=work), table, code_PX)
    log_p_MC = torch.empty(rows, x_RC.shape[1], dtype=work, device=x_RC.device)
    taken_RX = torch.empty(code_PX.shape, dtype=work, device=x_RC.device)
    for low in range(0, len(x_RC), rows):
        x_MC, code_MX = x_RC[low : low + rows], code_PX[low : low + rows]
        block_MC = torch.log_softmax(x_MC, dim=1, dtype=work, out=log_p_MC[: len(x_MC)])
        torch.gather(block_MC, 1, code_MX, out=taken_RX[low : low + rows])
    return taken_RX


def _power_sums(x_RC: Tensor, code_RX: Tensor | None, work: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Sums of exp over rows, and what `code_RX` asks for, taken while the rows are in the cache.

    Powers of two, without looking for the maximum first, take 0.6 of the time of log_softmax but three
    operations for one. The sum tells where that was unsafe.
    """
    rows = _block_rows(x_RC, work)
    power_MC = torch.empty(rows, x_RC.shape[1], dtype=work, device=x_RC.device)
    sum_R = torch.empty(len(x_RC), dtype=work, device=x_RC.device)
    taken_RX = None if code_RX is None else torch.empty(code_RX.shape, dtype=x_RC.dtype, device=x_RC.device)
    for low in range(0, len(x_RC), rows):
        x_MC = x_RC[low : low + rows]
        block_MC = power_MC[: len(x_MC)]
        torch.mul(x_MC.to(work), math.log2(math.e), out=block_MC).exp2_()
        torch.sum(block_MC, dim=1, out=sum_R[low : low + rows])
        if code_RX is not None and taken_RX is not None:
            torch.gather(x_MC, 1, code_RX[low : low + rows], out=taken_RX[low : low + rows])
    return sum_R, taken_RX


def _block_rows(x_RC: Tensor, work: torch.dtype) -> int:
    block_bytes = _BLOCK_BYTES_CUDA if x_RC.is_cuda else _BLOCK_BYTES
    return max(1, min(len(x_RC), block_bytes // (x_RC.shape[1] * work.itemsize)))


def _unpack(
    best: Best, table: _Table, code_PX: Tensor | None, width: int, num_beams: int
) -> tuple[Tensor, ...]:
    """Score, parent, code and node of the chosen places, padded to `width`."""
    num_searches, num_chosen = best.place_BN.shape
    row_BN = best.place_BN // table.width
    order_BN = torch.add(best.place_BN, row_BN, alpha=-table.width)
    node_BN = table.start_P.view(num_searches, -1).gather(1, row_BN) + order_BN
    code_BN = order_BN
    if code_PX is not None:
        code_BN = code_PX.view(num_searches, -1).gather(1, best.place_BN).long()
    if table.beam_P is not None:
        row_BN = table.beam_P.view(num_searches, -1).gather(1, row_BN) % num_beams
    if num_chosen == width and not best.some_empty:
        return best.score_BN, row_BN, code_BN, node_BN
    empty_BN, missing = best.score_BN == -torch.inf, (0, width - num_chosen)
    columns = (F.pad(column.masked_fill(empty_BN, 0), missing) for column in (row_BN, code_BN, node_BN))
    return F.pad(best.score_BN, missing, value=-torch.inf), *columns
