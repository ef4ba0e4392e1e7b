"""residual_quantize in Triton for rows too wide for registers, and for rows that fp16 leaves open.

The residual lies in the result's own memory: one program writes and reads its rows there, which is the L2
cache (128 rows of 512 are 256 KB). What the search reads again and again, the rows in fp16, stays in shared
memory.

Shape letters: N rows of a tile, M books, L levels, C codes, D width (K of a chunk).
"""

from __future__ import annotations

import triton
import triton.language as tl

from feedworks_kernels.residual_quantize.search_kernel import error_bound, exponents, three_nearest


@triton.jit
def copy_rows(x_ptrs, residual_ptrs, inside_N, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Write rows in fp32."""
    d_K = tl.arange(0, CHUNK)[None, :]
    for d in range(0, WIDTH, CHUNK):
        mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
        x_NK = tl.load(x_ptrs + d + d_K, mask=mask_NK, other=0.0).to(tl.float32)
        tl.store(residual_ptrs + d + d_K, x_NK, mask=mask_NK)
    tl.debug_barrier()


@triton.jit
def measure(
    residual_ptrs,
    inside_N,
    NORMALISE: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Squared length and largest number of every row, scaled to length 1 before where that is asked for."""
    d_K = tl.arange(0, CHUNK)[None, :]
    if NORMALISE:
        square_N = tl.zeros((BLOCK_N,), tl.float32)
        for d in range(0, WIDTH, CHUNK):
            mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
            r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
            square_N += tl.sum(r_NK * r_NK, axis=1)
        length_N = tl.maximum(tl.sqrt(square_N), 1e-12)
        for d in range(0, WIDTH, CHUNK):
            mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
            r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
            tl.store(residual_ptrs + d + d_K, r_NK / length_N[:, None], mask=mask_NK)
        tl.debug_barrier()
    square_N = tl.zeros((BLOCK_N,), tl.float32)
    most_N = tl.zeros((BLOCK_N,), tl.float32)
    for d in range(0, WIDTH, CHUNK):
        mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
        r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
        square_N += tl.sum(r_NK * r_NK, axis=1)
        most_N = tl.maximum(most_N, tl.max(tl.abs(r_NK), axis=1))
    return square_N, most_N


@triton.jit
def distances(
    residual_ptrs,
    codebook_ptr,
    code_N,
    wanted_N,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Squared distance of every row to a code of its own, in fp32."""
    d_K = tl.arange(0, CHUNK)[None, :]
    code_ptrs = codebook_ptr + code_N.to(tl.int64)[:, None] * WIDTH
    square_N = tl.zeros((BLOCK_N,), tl.float32)
    for d in range(0, WIDTH, CHUNK):
        mask_NK = wanted_N[:, None] & (d + d_K < WIDTH)
        r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
        r_NK -= tl.load(code_ptrs + d + d_K, mask=mask_NK, other=0.0).to(tl.float32)
        square_N += tl.sum(r_NK * r_NK, axis=1)
    return square_N


@triton.jit
def subtract(residual_ptrs, codebook_ptr, code_N, inside_N, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Take every row's code off its residual."""
    d_K = tl.arange(0, CHUNK)[None, :]
    code_ptrs = codebook_ptr + code_N.to(tl.int64)[:, None] * WIDTH
    tl.debug_barrier()
    for d in range(0, WIDTH, CHUNK):
        mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
        r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
        r_NK -= tl.load(code_ptrs + d + d_K, mask=mask_NK, other=0.0).to(tl.float32)
        tl.store(residual_ptrs + d + d_K, r_NK, mask=mask_NK)
    tl.debug_barrier()


@triton.jit
def fp16_rows(
    residual_ptrs,
    low_row_ptrs,
    most_N,
    inside_N,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write rows in fp16, scaled by a power of 2. Returns the factor back and the squared error."""
    d_K = tl.arange(0, CHUNK)[None, :]
    scale_N, back_N = exponents(most_N)
    lost_N = tl.zeros((BLOCK_N,), tl.float32)
    for d in range(0, D, CHUNK):
        mask_NK = inside_N[:, None] & (d + d_K < WIDTH)
        r_NK = tl.load(residual_ptrs + d + d_K, mask=mask_NK, other=0.0)
        low_NK = (r_NK * scale_N[:, None]).to(tl.float16)
        lost_NK = r_NK - low_NK.to(tl.float32) * back_N[:, None]
        lost_N += tl.sum(lost_NK * lost_NK, axis=1)
        tl.store(low_row_ptrs + d + d_K, low_NK)
    tl.debug_barrier()
    return back_N, lost_N


@triton.jit(do_not_specialize=["num_rows"])
def wide_kernel(
    x_ptr,
    codebooks_ptr,
    low_ptr,
    half_ptr,
    stats_ptr,
    codes_ptr,
    residual_ptr,
    num_open_ptr,
    open_ptr,
    low_row_ptr,
    num_rows,
    num_levels,
    ROW_STRIDE: tl.constexpr,
    BOOK_STRIDE: tl.constexpr,
    NUM_BOOKS: tl.constexpr,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    NORMALISE: tl.constexpr,
    ROUNDING: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """As `quantise_kernel`. `low_row_ptr` has room for every program's rows in fp16."""
    book = tl.program_id(1).to(tl.int64)
    row_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    x_ptrs = x_ptr + (book * BOOK_STRIDE + row_N * ROW_STRIDE)[:, None]
    residual_ptrs = residual_ptr + ((row_N * NUM_BOOKS + book) * WIDTH)[:, None]
    low_row = (book * tl.num_programs(0) + tl.program_id(0)) * BLOCK_N + tl.arange(0, BLOCK_N)
    low_row_ptrs = low_row_ptr + (low_row * D)[:, None]
    codebooks_ptr += book * num_levels * (C * WIDTH)
    low_ptr += book * num_levels * (PADDED_C * D)
    half_ptr += book * num_levels * PADDED_C
    stats_ptr += book * num_levels * 4
    codes_ptrs = codes_ptr + (row_N * NUM_BOOKS + book) * num_levels
    open_N = tl.zeros((BLOCK_N,), tl.int32)
    copy_rows(x_ptrs, residual_ptrs, inside_N, WIDTH, CHUNK)
    for level in range(num_levels):
        square_N, most_N = measure(residual_ptrs, inside_N, NORMALISE, WIDTH, CHUNK, BLOCK_N)
        back_N, lost_N = fp16_rows(residual_ptrs, low_row_ptrs, most_N, inside_N, WIDTH, D, CHUNK, BLOCK_N)
        bound_N = error_bound(square_N, lost_N, stats_ptr, ROUNDING)
        first_N, second_N, third_N, code_N, other_N = three_nearest(
            tl.load(low_row_ptrs + tl.arange(0, D)[None, :]),
            back_N * tl.load(stats_ptr),
            square_N / 2 + bound_N,
            low_ptr,
            half_ptr,
            PADDED_C,
            D,
            BLOCK_N,
            BLOCK_C,
        )
        window_N = first_N + 2 * bound_N
        code_N, other_N = tl.minimum(code_N, C - 1), tl.minimum(other_N, C - 1)
        close_N = (second_N <= window_N) & inside_N
        if tl.max(close_N.to(tl.int32), axis=0) > 0:
            one_N = distances(residual_ptrs, codebooks_ptr, code_N, close_N, WIDTH, CHUNK, BLOCK_N)
            two_N = distances(residual_ptrs, codebooks_ptr, other_N, close_N, WIDTH, CHUNK, BLOCK_N)
            better_N = close_N & ((two_N < one_N) | ((two_N == one_N) & (other_N < code_N)))
            code_N = tl.where(better_N, other_N, code_N)
        open_N |= ((third_N <= window_N) & inside_N).to(tl.int32)
        subtract(residual_ptrs, codebooks_ptr, code_N, inside_N, WIDTH, CHUNK)
        tl.store(codes_ptrs + level, code_N.to(tl.int64), mask=inside_N)
        codebooks_ptr += C * WIDTH
        low_ptr += PADDED_C * D
        half_ptr += PADDED_C
        stats_ptr += 4
    num_open = tl.sum(open_N, axis=0)
    if num_open > 0:
        place = tl.atomic_add(num_open_ptr, num_open)
        tl.store(open_ptr + place + tl.cumsum(open_N, axis=0) - 1, row_N * NUM_BOOKS + book, mask=open_N > 0)


@triton.jit(do_not_specialize=["num_rows"])
def exact_kernel(
    x_ptr,
    codebooks_ptr,
    half_ptr,
    codes_ptr,
    residual_ptr,
    num_open_ptr,
    open_ptr,
    num_rows,
    num_levels,
    ROW_STRIDE: tl.constexpr,
    BOOK_STRIDE: tl.constexpr,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    WIDTH: tl.constexpr,
    NORMALISE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rows whose codes fp16 left open, once more with products of fp32 precision (three of TF32).

    Program (p, b) takes every P-th tile of such rows of book b; the list holds the rows of all books, so a
    row of another book is left out by its number. The lowest of equal codes wins.
    """
    num_books = tl.num_programs(1)
    book = tl.program_id(1).to(tl.int64)
    num_open = tl.load(num_open_ptr)
    codebooks_ptr += book * num_levels * (C * WIDTH)
    half_ptr += book * num_levels * PADDED_C
    column_P = tl.arange(0, BLOCK_C)
    d_K = tl.arange(0, CHUNK)
    for tile in range(tl.program_id(0), (num_open + BLOCK_N - 1) // BLOCK_N, tl.num_programs(0)):
        place_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        open_N = tl.load(open_ptr + place_N, mask=place_N < num_open, other=-1)
        inside_N = (open_N >= 0) & (open_N % num_books == book)
        row_N = tl.maximum(open_N, 0) // num_books
        x_ptrs = x_ptr + (book * BOOK_STRIDE + row_N * ROW_STRIDE)[:, None]
        residual_ptrs = residual_ptr + (tl.maximum(open_N, 0) * WIDTH)[:, None]
        codebook_ptr, level_half_ptr = codebooks_ptr, half_ptr
        copy_rows(x_ptrs, residual_ptrs, inside_N, WIDTH, CHUNK)
        for level in range(num_levels):
            measure(residual_ptrs, inside_N, NORMALISE, WIDTH, CHUNK, BLOCK_N)
            least_N = tl.full((BLOCK_N,), float("inf"), tl.float32)
            code_N = tl.zeros((BLOCK_N,), tl.int32)
            for low in range(0, C, BLOCK_C):
                code_P = low + column_P
                code_ptrs = codebook_ptr + code_P.to(tl.int64)[:, None] * WIDTH + d_K[None, :]
                product_NP = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
                for d in range(0, WIDTH, CHUNK):
                    inside_K = (d + d_K < WIDTH)[None, :]
                    mask_NK, mask_PK = inside_N[:, None] & inside_K, (code_P < C)[:, None] & inside_K
                    r_NK = tl.load(residual_ptrs + d + d_K[None, :], mask=mask_NK, other=0.0)
                    code_PK = tl.load(code_ptrs + d, mask=mask_PK, other=0.0)
                    product_NP = tl.dot(
                        r_NK, tl.trans(code_PK.to(tl.float32)), product_NP, input_precision="tf32x3"
                    )
                half_P = tl.load(level_half_ptr + code_P)
                score_NP = half_P[None, :] - product_NP
                one_N = tl.min(score_NP, axis=1)
                first_N = tl.min(tl.where(score_NP == one_N[:, None], column_P[None, :], BLOCK_C), axis=1)
                code_N = tl.where(one_N < least_N, low + first_N, code_N)
                least_N = tl.minimum(one_N, least_N)
            code_N = tl.minimum(code_N, C - 1)
            subtract(residual_ptrs, codebook_ptr, code_N, inside_N, WIDTH, CHUNK)
            tl.store(codes_ptr + open_N * num_levels + level, code_N.to(tl.int64), mask=inside_N)
            codebook_ptr += C * WIDTH
            level_half_ptr += PADDED_C
