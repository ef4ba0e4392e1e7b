"""How well semantic IDs use their codebooks and keep items apart.

Shapes: N items, L levels, C codes per level, U distinct semantic IDs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def bucket_sizes(codes_NL: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the number of items of each distinct semantic ID, (U,), ordered by semantic ID.

    Raises:
        ValueError: the codes are not (N, L).
    """
    return np.bincount(_bucket_of_item(_checked(codes_NL))).astype(np.int64)


def collision_rate(codes_NL: npt.ArrayLike) -> float:
    """Return the share of items, 0 to 1, whose semantic ID belongs to another item too; 0 without items.

    It is not 1 - U/N: of two items in one bucket both collide, so one such pair in four items gives 0.5.
    """
    sizes_U = bucket_sizes(codes_NL)
    return float(sizes_U[sizes_U > 1].sum() / max(1, sizes_U.sum()))


def code_counts(codes_NL: npt.ArrayLike, num_codes: int) -> npt.NDArray[np.int64]:
    """Return the number of items per code, (L, C).

    Raises:
        ValueError: the codes are not (N, L) or one lies outside 0..C-1.
    """
    codes = _checked(codes_NL)
    if codes.size and not 0 <= codes.min() <= codes.max() < num_codes:
        raise ValueError(f"codes run from {codes.min()} to {codes.max()}; expected 0 to {num_codes - 1}")
    counts = [np.bincount(codes_N, minlength=num_codes) for codes_N in codes.T]
    return np.array(counts, dtype=np.int64).reshape(codes.shape[1], num_codes)


def codebook_usage(codes_NL: npt.ArrayLike, num_codes: int) -> npt.NDArray[np.float64]:
    """Return the share of codes, 0 to 1, that at least one item uses, (L,)."""
    usage_L: npt.NDArray[np.float64] = (code_counts(codes_NL, num_codes) > 0).mean(axis=1)
    return usage_L


def codebook_entropy(codes_NL: npt.ArrayLike, num_codes: int) -> npt.NDArray[np.float64]:
    """Return the entropy of the code distribution in bits, (L,); at most log2(C), 0 without items."""
    counts_LC = code_counts(codes_NL, num_codes)
    p_LC = counts_LC / np.maximum(1, counts_LC.sum(axis=1, keepdims=True))
    log_p_LC = np.log2(p_LC, out=np.zeros_like(p_LC), where=p_LC > 0)
    entropy_L: npt.NDArray[np.float64] = np.abs(p_LC * log_p_LC).sum(axis=1)
    return entropy_L


def codebook_perplexity(codes_NL: npt.ArrayLike, num_codes: int) -> npt.NDArray[np.float64]:
    """Return 2 ** entropy, (L,): the number of codes that an even use of the same entropy would need."""
    return np.exp2(codebook_entropy(codes_NL, num_codes))


def _checked(codes_NL: npt.ArrayLike) -> npt.NDArray[np.int64]:
    codes = np.asarray(codes_NL)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"expected integer codes (N, L), got {codes.dtype} {codes.shape}")
    return codes.astype(np.int64, copy=False)


def _bucket_of_item(codes_NL: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the distinct rows 0..U-1; level by level, which sorts integers and cannot overflow."""
    bucket_N = np.zeros(len(codes_NL), dtype=np.int64)
    for codes_N in codes_NL.T:
        code_N = np.unique(codes_N, return_inverse=True)[1]
        width = int(code_N.max(initial=0)) + 1
        bucket_N = np.unique(bucket_N * width + code_N, return_inverse=True)[1].astype(np.int64, copy=False)
    return bucket_N
