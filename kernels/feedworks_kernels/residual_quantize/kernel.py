"""residual_quantize in Triton: all levels of a tile of rows in one program, the residual in registers.

A product in fp16 of operands scaled by powers of 2 ranks the codes within an error bound that is computed
for each row. If the second distance is beyond it, the row is done; if the third is, fp32 decides between two
candidates; else (equal codes, ties) a second launch searches all codes in fp32 precision.

Shape letters: N rows (of a tile), M books, L levels, C codes, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels._device import gpu_of, on
from feedworks_kernels.residual_quantize import eager
from feedworks_kernels.residual_quantize.search_kernel import (
    OPTIONS,
    error_bound,
    gather_codes,
    square_distance,
    three_nearest,
    to_fp16,
)
from feedworks_kernels.residual_quantize.wide_kernel import exact_kernel, wide_kernel

# What a float may lose by giving bits to the column (2^-16 of half a distance), and the product per number of
# a row, as shares of (|r| + |c|)^2. The tensor core's sum truncates, which is twice a rounding.
_ROUNDING, _ROUNDING_PER_NUMBER = 2.0**-17, 2.0**-25
REGISTER_WIDTH = 128  # a tile of residuals is kept in registers up to this width, in L2 from there on
MOST_WIDTH = 512  # shared memory holds 128 rows and three tiles of 32 codes in fp16 up to this width
HOPPER_BYTES = 227 << 10
_MOST_CODES = 64  # of a tile
_PROGRAMS = 264  # for open rows, whose number the host does not know: two for every multiprocessor
EXACT = {"CHUNK": 32, "BLOCK_N": 64, "BLOCK_C": 64, "num_warps": 8, "num_stages": 2}
_FAR = 3e38  # half a squared distance to the codes that fill up the last tile


class _Codebooks(NamedTuple):
    """What the search reads of the codebooks, levels (books) one after the other."""

    exact: Tensor  # as given
    low: Tensor  # fp16, scaled by a power of 2, zeros up to whole tiles
    half: Tensor  # half the squared lengths, `_FAR` up to whole tiles
    stats: Tensor  # per level: factor back to the codes' size, longest code, largest error of `low`


@triton.jit(do_not_specialize=["num_rows"])
def quantise_kernel(
    x_ptr,
    codebooks_ptr,
    low_ptr,
    half_ptr,
    stats_ptr,
    codes_ptr,
    residual_ptr,
    num_open_ptr,
    open_ptr,
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
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """All levels of one tile of rows of one book."""
    book = tl.program_id(1).to(tl.int64)
    row_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    d_D = tl.arange(0, D)
    inside_ND = inside_N[:, None] & (d_D < WIDTH)[None, :]
    x_ptrs = x_ptr + book * BOOK_STRIDE + row_N[:, None] * ROW_STRIDE + d_D[None, :]
    r_ND = tl.load(x_ptrs, mask=inside_ND, other=0.0).to(tl.float32)
    codebooks_ptr += book * num_levels * (C * WIDTH)
    low_ptr += book * num_levels * (PADDED_C * D)
    half_ptr += book * num_levels * PADDED_C
    stats_ptr += book * num_levels * 4
    codes_ptrs = codes_ptr + (row_N * NUM_BOOKS + book) * num_levels
    open_N = tl.zeros((BLOCK_N,), tl.int32)  # rows with more than two candidates on some level
    for level in range(num_levels):
        square_N = tl.sum(r_ND * r_ND, axis=1)
        if NORMALISE:
            r_ND = r_ND / tl.maximum(tl.sqrt(square_N), 1e-12)[:, None]
            square_N = tl.sum(r_ND * r_ND, axis=1)
        low_ND, back_N, lost_N = to_fp16(r_ND)
        bound_N = error_bound(square_N, lost_N, stats_ptr, ROUNDING)
        # The bound is added to the half distances, so that none of them falls below 0.
        first_N, second_N, third_N, code_N, other_N = three_nearest(
            low_ND,
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
            one_N = square_distance(r_ND, codebooks_ptr, code_N, close_N, d_D, WIDTH)
            two_N = square_distance(r_ND, codebooks_ptr, other_N, close_N, d_D, WIDTH)
            better_N = close_N & ((two_N < one_N) | ((two_N == one_N) & (other_N < code_N)))
            code_N = tl.where(better_N, other_N, code_N)
        open_N |= ((third_N <= window_N) & inside_N).to(tl.int32)
        r_ND -= gather_codes(codebooks_ptr, code_N, inside_N, d_D, WIDTH)
        tl.store(codes_ptrs + level, code_N.to(tl.int64), mask=inside_N)
        codebooks_ptr += C * WIDTH
        low_ptr += PADDED_C * D
        half_ptr += PADDED_C
        stats_ptr += 4
    residual_ptrs = residual_ptr + (row_N * NUM_BOOKS + book)[:, None] * WIDTH + d_D[None, :]
    tl.store(residual_ptrs, r_ND, mask=inside_ND)
    num_open = tl.sum(open_N, axis=0)
    if num_open > 0:
        place = tl.atomic_add(num_open_ptr, num_open)
        tl.store(open_ptr + place + tl.cumsum(open_N, axis=0) - 1, row_N * NUM_BOOKS + book, mask=open_N > 0)


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """One launch for all levels. Arguments and result as `feedworks_kernels.residual_quantize`."""
    if not _fits(x_ND, codebooks_LCD):
        return eager.residual_quantize(x_ND, codebooks_LCD, normalise)
    codes_NML, residual_NMD = _quantise(x_ND.unsqueeze(1), codebooks_LCD, 1, normalise)
    return codes_NML.squeeze(1), residual_NMD.squeeze(1)


def product_quantize(x_NMD: Tensor, codebooks_MCD: Tensor) -> tuple[Tensor, Tensor]:
    """One launch for all books. Arguments and result as `feedworks_kernels.product_quantize`."""
    if not _fits(x_NMD, codebooks_MCD):
        return eager.product_quantize(x_NMD, codebooks_MCD)
    codes_NML, residual_NMD = _quantise(x_NMD, codebooks_MCD, x_NMD.shape[1], False)
    return codes_NML.squeeze(2), residual_NMD


def _fits(x: Tensor, codebooks: Tensor) -> bool:
    if torch.float64 in (x.dtype, codebooks.dtype) or x.shape[-1] > MOST_WIDTH:
        return False
    return tile(max(16, triton.next_power_of_2(x.shape[-1])), gpu_of(x.device).shared_bytes).stages > 0


def _quantise(x_NMD: Tensor, codebooks_BCD: Tensor, num_books: int, normalise: bool) -> tuple[Tensor, Tensor]:
    num_rows, _, width = x_NMD.shape
    num_codes = codebooks_BCD.shape[1]
    num_levels = codebooks_BCD.shape[0] // num_books
    x_NMD = x_NMD if x_NMD.stride(2) == 1 or width == 1 else x_NMD.contiguous()
    codes_NML = torch.empty(num_rows, num_books, num_levels, dtype=torch.int64, device=x_NMD.device)
    residual_NMD = torch.empty(x_NMD.shape, dtype=torch.float32, device=x_NMD.device)
    if not num_rows:
        return codes_NML, residual_NMD
    padded_width = max(16, triton.next_power_of_2(width))
    shape = tile(padded_width, gpu_of(x_NMD.device).shared_bytes)
    num_tiles = triton.cdiv(num_rows, shape.rows)
    constants = constants_of(width, num_codes, normalise, x_NMD.stride())
    search = search_of(padded_width, num_books, shape)
    with on(x_NMD):
        books = _prepare(codebooks_BCD, constants["PADDED_C"], padded_width)
        num_open = torch.zeros(1, dtype=torch.int32, device=x_NMD.device)
        open_R = torch.empty(num_rows * num_books, dtype=torch.int64, device=x_NMD.device)
        results = codes_NML, residual_NMD, num_open, open_R
        if padded_width <= REGISTER_WIDTH:
            quantise_kernel[(num_tiles, num_books)](
                x_NMD, *books, *results, num_rows, num_levels, **constants, **search, **OPTIONS
            )
        else:
            rows = num_books * num_tiles * shape.rows
            low_rows = torch.empty(rows, padded_width, dtype=torch.float16, device=x_NMD.device)
            wide_kernel[(num_tiles, num_books)](
                x_NMD,
                *books,
                *results,
                low_rows,
                num_rows,
                num_levels,
                CHUNK=64,
                **constants,
                **search,
                **OPTIONS,
            )
        exact_kernel[(min(triton.cdiv(num_rows, 64), _PROGRAMS), num_books)](
            x_NMD, books.exact, books.half, *results, num_rows, num_levels, **constants, **EXACT, **OPTIONS
        )
    return codes_NML, residual_NMD


def _prepare(codebooks_BCD: Tensor, padded_codes: int, padded_width: int) -> _Codebooks:
    codebooks_BCD = codebooks_BCD.contiguous()
    num_codes, width = codebooks_BCD.shape[1:]
    whole_BCD = codebooks_BCD.float()
    square_BC = whole_BCD.square().sum(dim=2)
    exponent_B11 = torch.frexp(whole_BCD.abs().amax(dim=(1, 2), keepdim=True)).exponent.clamp(-126, 126)
    back_B11 = torch.ldexp(torch.ones_like(exponent_B11, dtype=torch.float32), exponent_B11)
    low_BCD = (whole_BCD / back_B11).half()
    lost_BC = (whole_BCD - low_BCD.float() * back_B11).square_().sum(dim=2)
    missing = padded_codes - num_codes
    # A thousandth more for what rounding does to the bounds themselves.
    bounds_2B = torch.stack((square_BC.amax(dim=1), lost_BC.amax(dim=1))).sqrt_() * 1.001
    return _Codebooks(
        codebooks_BCD,
        F.pad(low_BCD, (0, padded_width - width, 0, missing)),
        F.pad(square_BC / 2, (0, missing), value=_FAR),
        F.pad(torch.stack((back_B11.flatten(), *bounds_2B), dim=1), (0, 1)),
    )


class Tile(NamedTuple):
    """What one program searches at a time, and how."""

    rows: int
    codes: int
    warps: int
    stages: int


def constants_of(width: int, num_codes: int, normalise: bool, strides: tuple[int, ...]) -> dict[str, int]:
    """Return what all kernels know at compile time."""
    return {
        "ROW_STRIDE": strides[0],
        "BOOK_STRIDE": strides[1],
        "C": num_codes,
        "PADDED_C": triton.cdiv(num_codes, _MOST_CODES) * _MOST_CODES,
        "WIDTH": width,
        "NORMALISE": normalise,
    }


def search_of(padded_width: int, num_books: int, shape: Tile) -> dict[str, Any]:
    """Return what only the search in fp16 knows."""
    return {
        "NUM_BOOKS": num_books,
        "D": padded_width,
        "ROUNDING": _ROUNDING + padded_width * _ROUNDING_PER_NUMBER,
        "BLOCK_N": shape.rows,
        "BLOCK_C": shape.codes,
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }


def tile(padded_width: int, shared_bytes: int = HOPPER_BYTES) -> Tile:
    """Return the tile for a width; tests compile each and see that nothing spills. Stages 0: no room."""
    rows = 64 if padded_width == REGISTER_WIDTH else 128
    codes = _MOST_CODES if padded_width <= 256 else 32
    # Rows and, in so many stages, codes, all in fp16; some is left for sums across warps.
    lines = (shared_bytes - (1 << 10)) // (2 * padded_width)
    buffers = max(0, (lines - rows) // codes)
    if shared_bytes >= HOPPER_BYTES:
        return Tile(rows, codes, 8, min(3, buffers))
    # Before Hopper the product reads registers, and of s stages s - 1 lie in shared memory. Of wide rows
    # a third stage takes more registers than there are.
    return Tile(rows, codes, 8, min(3 if padded_width < 256 else 2, buffers + 1) if buffers else 0)
