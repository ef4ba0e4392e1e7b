"""The three Triton kernels of beam_step: extend every beam, filter by a bound, rank what is left.

Scores travel as integers of the same order (`ordered`), in which NaN is above all and so comes out on top.

Shape letters: B searches, K beams of each, C codes, X places for the children of a beam, S slots of a beam
(for its best children), G groups of a beam's children, W beams kept, R and J children to rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

# -inf as `ordered` has it: a child that is not there.
DEAD = tl.constexpr(-2139095041)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def ordered(x):
    """Bits of floats as integers that compare like the floats; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x != x, _NAN, bits)


@triton.jit
def as_float(key):
    """Undo `ordered`."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def bound(key_X, wanted, most):
    """A number that `wanted` keys reach but, equal ones aside, no more than `most`; DEAD + 1 if few live.

    Bisection: a few rounds, each one comparison and one sum.
    """
    low = tl.full((), DEAD + 1, tl.int64)
    high = tl.max(key_X, axis=0).to(tl.int64) + 1
    num_low = tl.sum((key_X > DEAD).to(tl.int32), axis=0)
    while (num_low > most) & (high - low > 1):
        middle = (low + high) >> 1
        num_middle = tl.sum((key_X >= middle.to(tl.int32)).to(tl.int32), axis=0)
        enough = num_middle >= wanted
        low = tl.where(enough, middle, low)
        num_low = tl.where(enough, num_middle, num_low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def log_sum_exp(logit_ptr, end, BLOCK_C: tl.constexpr):
    """Over the first `end` logits of a row. NaN where one is NaN or +inf, 0 where all are -inf."""
    c_C = tl.arange(0, BLOCK_C)
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for low in range(0, end, BLOCK_C):
        x_C = tl.load(logit_ptr + low + c_C, mask=low + c_C < end, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x_C, axis=0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - shift) + tl.sum(tl.exp(x_C - shift), axis=0)
        most = higher
    return tl.where(most == float("-inf"), tl.where(total == 0, 0.0, total), most + tl.log(total))


@triton.jit(do_not_specialize=["num_beams", "num_nodes", "num_children"])
def extend_kernel(
    logits_ptr,
    score_ptr,
    node_ptr,
    child_start_ptr,
    child_code_ptr,
    key_ptr,
    place_ptr,
    count_ptr,
    most_ptr,
    num_left_ptr,
    num_beams,
    num_nodes,
    num_children,
    SEARCH_STRIDE: tl.constexpr,
    BEAM_STRIDE: tl.constexpr,
    C: tl.constexpr,
    BY_CHILDREN: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """One beam: its normaliser, its children's scores, the best of these in order of code, group maxima."""
    row = tl.program_id(0).to(tl.int64)
    search = row // num_beams
    if row % num_beams == 0:
        tl.store(num_left_ptr + search, 0)
    score = tl.load(score_ptr + row).to(tl.float32)
    node = tl.load(node_ptr + row).to(tl.int64)
    # A NaN from the step before goes on, so that who looks at the end of a search still sees it.
    exists = (score != float("-inf")) & (node >= 0) & (node < num_nodes)
    node = tl.where(exists, node, 0)
    start = tl.load(child_start_ptr + node).to(tl.int64)
    end = tl.minimum(tl.load(child_start_ptr + node + 1).to(tl.int64), num_children)
    count = tl.where(exists & (start >= 0), tl.maximum(end - start, 0), 0).to(tl.int32)
    logit_ptr = logits_ptr + search * SEARCH_STRIDE + (row % num_beams) * BEAM_STRIDE
    x_X = tl.arange(0, BLOCK_X)
    code_X = tl.load(child_code_ptr + start + x_X, mask=x_X < count, other=-1)
    valid_X = (code_X >= 0) & (code_X < C)
    code_X = code_X.to(tl.int32)
    logit_X = tl.load(logit_ptr + code_X, mask=valid_X, other=float("-inf")).to(tl.float32)
    if BY_CHILDREN:
        most = tl.max(logit_X, axis=0)
        most = tl.where(most == float("-inf"), 0.0, most)
        total = tl.sum(tl.exp(logit_X - most), axis=0)
        norm = tl.where(total == 0, 0.0, most + tl.log(total))
    else:
        norm = log_sum_exp(logit_ptr, tl.where(count > 0, C, 0), BLOCK_C)
    key_X = tl.where(valid_X, ordered(logit_X + (score - norm)), DEAD)
    kept_X = key_X > DEAD
    if tl.sum(kept_X.to(tl.int32), axis=0) > SLOTS:
        least = bound(key_X, SLOTS, SLOTS)
        equal_X = key_X == least
        kept_X = key_X > least
        room = SLOTS - tl.sum(kept_X.to(tl.int32), axis=0)
        kept_X = kept_X | (equal_X & (tl.cumsum(equal_X.to(tl.int32), axis=0) <= room))
    slot_X = tl.cumsum(kept_X.to(tl.int32), axis=0) - 1
    tl.store(key_ptr + row * SLOTS + slot_X, key_X, mask=kept_X)
    tl.store(place_ptr + row * SLOTS + slot_X, x_X, mask=kept_X)
    tl.store(count_ptr + row, tl.sum(kept_X.to(tl.int32), axis=0))
    group_XG = tl.reshape(tl.where(kept_X, key_X, DEAD), (BLOCK_X // GROUPS, GROUPS))
    tl.store(most_ptr + row * GROUPS + tl.arange(0, GROUPS), tl.max(group_XG, axis=0))


@triton.jit(do_not_specialize=["num_beams"])
def filter_kernel(
    key_ptr,
    count_ptr,
    most_ptr,
    num_left_ptr,
    left_key_ptr,
    left_slot_ptr,
    num_beams,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """One beam: its children that reach what W group maxima of the search reach, into the search's list.

    W disjoint groups hold W children at least that good, so nothing below can be among the W best.
    """
    row = tl.program_id(0).to(tl.int64)
    search = row // num_beams
    count = tl.load(count_ptr + row)
    if count > 0:
        g_G = tl.arange(0, BLOCK_G)
        most_ptrs = most_ptr + search * num_beams * GROUPS + g_G
        most_G = tl.load(most_ptrs, mask=g_G < num_beams * GROUPS, other=DEAD)
        least = bound(most_G, WIDTH, WIDTH + WIDTH // 8)
        s_S = tl.arange(0, BLOCK_S)
        key_S = tl.load(key_ptr + row * SLOTS + s_S, mask=s_S < count, other=DEAD)
        left_S = key_S >= least
        num_left = tl.sum(left_S.to(tl.int32), axis=0)
        if num_left > 0:
            first = tl.atomic_add(num_left_ptr + search, num_left)
            place_S = search * num_beams * SLOTS + first + tl.cumsum(left_S.to(tl.int32), axis=0) - 1
            tl.store(left_key_ptr + place_S, key_S, mask=left_S)
            tl.store(left_slot_ptr + place_S, (row % num_beams).to(tl.int32) * SLOTS + s_S, mask=left_S)


@triton.jit(do_not_specialize=["num_beams"])
def rank_kernel(
    node_ptr,
    child_start_ptr,
    child_code_ptr,
    place_ptr,
    num_left_ptr,
    left_key_ptr,
    left_slot_ptr,
    out_score_ptr,
    out_parent_ptr,
    out_code_ptr,
    out_node_ptr,
    num_beams,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Some of a search's list: the number of better children is a child's place in the result.

    The list is in any order, the result is not: score, then slot, which rises with parent and code.
    """
    search = tl.program_id(1).to(tl.int64)
    num_left = tl.load(num_left_ptr + search)
    left_key_ptr += search * num_beams * SLOTS
    left_slot_ptr += search * num_beams * SLOTS
    stride = tl.num_programs(0) * BLOCK_R
    j_J = tl.arange(0, BLOCK_J)
    for low in range(tl.program_id(0) * BLOCK_R, tl.maximum(num_left, WIDTH), stride):
        i_R = low + tl.arange(0, BLOCK_R)
        inside_R = i_R < num_left
        key_R = tl.load(left_key_ptr + i_R, mask=inside_R, other=DEAD)
        slot_R = tl.load(left_slot_ptr + i_R, mask=inside_R, other=0)
        rank_R = tl.zeros((BLOCK_R,), tl.int32)
        for first in range(0, num_left, BLOCK_J):
            key_J = tl.load(left_key_ptr + first + j_J, mask=first + j_J < num_left, other=DEAD)
            slot_J = tl.load(left_slot_ptr + first + j_J, mask=first + j_J < num_left, other=0)
            equal_RJ = (key_J[None, :] == key_R[:, None]) & (slot_J[None, :] < slot_R[:, None])
            better_RJ = (key_J[None, :] > key_R[:, None]) | equal_RJ
            rank_R += tl.sum(better_RJ.to(tl.int32), axis=1)
        # Places behind the last child are written by the programs that have nothing to rank there.
        rank_R = tl.where(inside_R, rank_R, i_R)
        kept_R = rank_R < WIDTH
        parent_R = (slot_R // SLOTS).to(tl.int64)
        row_R = search * num_beams + parent_R
        place_R = tl.load(place_ptr + row_R * SLOTS + slot_R % SLOTS, mask=inside_R, other=0)
        node_R = tl.load(node_ptr + row_R, mask=inside_R, other=0).to(tl.int64)
        start_R = tl.load(child_start_ptr + node_R, mask=inside_R, other=0).to(tl.int64) + place_R
        code_R = tl.load(child_code_ptr + start_R, mask=inside_R, other=0).to(tl.int64)
        out_R = search * WIDTH + rank_R
        tl.store(out_score_ptr + out_R, as_float(key_R), mask=kept_R)
        tl.store(out_parent_ptr + out_R, tl.where(inside_R, parent_R, 0), mask=kept_R)
        tl.store(out_code_ptr + out_R, code_R, mask=kept_R)
        tl.store(out_node_ptr + out_R, tl.where(inside_R, start_R, 0), mask=kept_R)
