"""What the Triton kernels of residual_quantize share: the search in fp16 for candidates.

Shape letters: N rows of a tile, C codes (P of them a tile), D width padded to a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What all kernels hand to the compiler: Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def exponents(most_N):
    """Powers of 2 that bring rows with these largest numbers into (-1, 1), and back.

    They are read off and built from exponent bits, so scaling itself loses nothing.
    """
    exponent_N = tl.minimum(most_N.to(tl.int32, bitcast=True) >> 23, 252)
    scale_N = ((253 - exponent_N) << 23).to(tl.float32, bitcast=True)
    return scale_N, ((exponent_N + 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def to_fp16(r_ND):
    """Round rows to fp16, scaled by a power of 2. Returns them, the factor back, and the squared error."""
    scale_N, back_N = exponents(tl.max(tl.abs(r_ND), axis=1))
    low_ND = (r_ND * scale_N[:, None]).to(tl.float16)
    lost_ND = r_ND - low_ND.to(tl.float32) * back_N[:, None]
    return low_ND, back_N, tl.sum(lost_ND * lost_ND, axis=1)


@triton.jit
def error_bound(square_N, lost_N, stats_ptr, ROUNDING: tl.constexpr):
    """How far half a squared distance by fp16 can be off: Cauchy-Schwarz with the measured errors."""
    length_N = tl.sqrt(square_N)
    error_N = tl.sqrt(lost_N)
    longest = tl.load(stats_ptr + 1)
    code_error = tl.load(stats_ptr + 2)
    sum_N = length_N + longest
    return error_N * longest + (length_N + error_N) * code_error + ROUNDING * sum_N * sum_N


@triton.jit
def three_nearest(
    low_ND,
    back_N,
    base_N,
    low_ptr,
    half_ptr,
    num_codes,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Three least halves of squared distances of every row, and the codes of two of them.

    A positive float compares like its bits as an integer. The lowest bits give way to the column, so that one
    minimum finds both; what that costs is in the error bound. Codes past the last are zeros, infinitely far.
    """
    column_P = tl.arange(0, BLOCK_C)
    first_N = tl.full((BLOCK_N,), 0x7F7FFFFF, tl.int32)
    second_N, third_N = first_N, first_N
    code_N = tl.zeros((BLOCK_N,), tl.int32)
    other_N = code_N
    places_PD = column_P[:, None] * D + tl.arange(0, D)[None, :]
    for low in range(0, num_codes, BLOCK_C):
        code_PD = tl.load(low_ptr + places_PD)
        half_P = tl.load(half_ptr + column_P)
        low_ptr += BLOCK_C * D
        half_ptr += BLOCK_C
        product_NP = tl.dot(low_ND, tl.trans(code_PD))
        half_NP = (half_P[None, :] + base_N[:, None]) - product_NP * back_N[:, None]
        key_NP = (half_NP.to(tl.int32, bitcast=True) & -BLOCK_C) | column_P[None, :]
        one_N = tl.min(key_NP, axis=1)
        key_NP = tl.where(key_NP == one_N[:, None], 0x7FFFFFFF, key_NP)
        two_N = tl.min(key_NP, axis=1)
        key_NP = tl.where(key_NP == two_N[:, None], 0x7FFFFFFF, key_NP)
        three_N = tl.min(key_NP, axis=1)
        # Two sorted lists of three into one: a is the list with the lesser head.
        swap_N = one_N < first_N
        a_code_N = tl.where(swap_N, low + (one_N & (BLOCK_C - 1)), code_N)
        b_code_N = tl.where(swap_N, code_N, low + (one_N & (BLOCK_C - 1)))
        a_other_N = tl.where(swap_N, low + (two_N & (BLOCK_C - 1)), other_N)
        a_second_N = tl.where(swap_N, two_N, second_N)
        a_third_N = tl.where(swap_N, three_N, third_N)
        b_first_N = tl.maximum(one_N, first_N)
        b_second_N = tl.where(swap_N, second_N, two_N)
        first_N = tl.minimum(one_N, first_N)
        code_N = a_code_N
        before_N = b_first_N < a_second_N
        other_N = tl.where(before_N, b_code_N, a_other_N)
        third_N = tl.where(before_N, tl.minimum(a_second_N, b_second_N), tl.minimum(a_third_N, b_first_N))
        second_N = tl.minimum(b_first_N, a_second_N)
    return (
        first_N.to(tl.float32, bitcast=True),
        second_N.to(tl.float32, bitcast=True),
        third_N.to(tl.float32, bitcast=True),
        code_N,
        other_N,
    )


@triton.jit
def gather_codes(codebook_ptr, code_N, wanted_N, d_D, WIDTH: tl.constexpr):
    """Vectors of codes in fp32, zeros where none is wanted and past the width."""
    places_ND = code_N.to(tl.int64)[:, None] * WIDTH + d_D[None, :]
    mask_ND = wanted_N[:, None] & (d_D < WIDTH)[None, :]
    return tl.load(codebook_ptr + places_ND, mask=mask_ND, other=0.0).to(tl.float32)


@triton.jit
def square_distance(r_ND, codebook_ptr, code_N, wanted_N, d_D, WIDTH: tl.constexpr):
    """Squared distance of every row to a code of its own, in fp32."""
    apart_ND = r_ND - gather_codes(codebook_ptr, code_N, wanted_N, d_D, WIDTH)
    return tl.sum(apart_ND * apart_ND, axis=1)
