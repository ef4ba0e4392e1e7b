"""Tile sizes of summary_attention's Triton kernels, and what their calls share.

A table, no tuner: each entry is compiled by the tests, which look for spills and tensor instructions.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from feedworks_kernels._device import gpu_of

# In the interpreter bf16 arithmetic is silently wrong, so operands go up to fp32 right after each load.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What every kernel hands to the compiler: Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}
WIDTHS = (16, 32, 64, 128)
_LARGEST_PACK = 8
# Keys and values that all heads at work read should stay in the L2 cache (50 MB on an H100).
_CACHE_BYTES = 32 << 20


class Tile(NamedTuple):
    """Rows and keys of a tile; keys (in the keys' gradient, rows) of a masked one; warps; loads under way."""

    rows: int
    keys: int
    edge: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """Return what the compiler wants to know."""
        return {"num_warps": self.warps, "num_stages": self.stages, **OPTIONS}


_INTERPRETED = Tile(64, 32, 32, 4, 1)
_KEY_INTERPRETED = Tile(32, 64, 32, 4, 1)
# (kernel, head width at most, kind of GPU and type of the rows) -> tile. `summary` is the forward pass of the
# summary rows, `summary_query` their gradient; `key` serves both kinds of keys, `key_packs` where the heads
# of a group do not fit into one tile, which takes more registers, as documents do (`query_packed`).
TILES: dict[tuple[str, int, str], Tile] = {
    ("forward", 64, "hopper"): Tile(128, 128, 64, 8, 2),
    ("forward", 128, "hopper"): Tile(128, 128, 64, 8, 2),
    ("summary", 64, "hopper"): Tile(64, 64, 64, 4, 2),
    ("summary", 128, "hopper"): Tile(64, 64, 64, 4, 2),
    ("query", 64, "hopper"): Tile(128, 128, 64, 8, 2),
    ("query", 128, "hopper"): Tile(128, 128, 64, 8, 2),
    ("query_packed", 128, "hopper"): Tile(128, 64, 64, 8, 2),
    ("summary_query", 64, "hopper"): Tile(64, 64, 64, 4, 2),
    ("summary_query", 128, "hopper"): Tile(64, 64, 64, 4, 2),
    ("key", 64, "hopper"): Tile(64, 128, 64, 8, 2),
    # 64 rows would feed the tensor cores better (README.md), but spill some words around the loops.
    ("key", 128, "hopper"): Tile(32, 128, 32, 8, 2),
    ("key_packs", 64, "hopper"): Tile(64, 128, 64, 8, 2),
    ("key_packs", 128, "hopper"): Tile(32, 128, 32, 8, 2),
    ("forward", 64, "ampere"): Tile(128, 64, 64, 8, 2),
    ("forward", 128, "ampere"): Tile(128, 64, 64, 8, 2),
    ("summary", 64, "ampere"): Tile(64, 64, 64, 4, 2),
    ("summary", 128, "ampere"): Tile(64, 64, 64, 8, 2),
    ("query", 64, "ampere"): Tile(64, 64, 64, 4, 2),
    ("query", 128, "ampere"): Tile(64, 64, 64, 8, 2),
    ("summary_query", 64, "ampere"): Tile(64, 64, 64, 4, 2),
    ("summary_query", 128, "ampere"): Tile(64, 64, 64, 8, 2),
    ("key", 64, "ampere"): Tile(64, 64, 64, 8, 2),
    ("key", 128, "ampere"): Tile(64, 64, 64, 8, 2),
    ("key_packs", 64, "ampere"): Tile(32, 64, 32, 8, 2),
    ("key_packs", 128, "ampere"): Tile(32, 64, 32, 8, 2),
    ("forward", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("forward", 128, "fp32"): Tile(16, 32, 32, 8, 2),
    ("summary", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("summary", 128, "fp32"): Tile(16, 32, 16, 8, 2),
    ("query", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("query", 128, "fp32"): Tile(16, 32, 32, 8, 2),
    ("summary_query", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("summary_query", 128, "fp32"): Tile(16, 32, 32, 8, 2),
    ("key", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("key", 128, "fp32"): Tile(16, 32, 16, 8, 2),
    ("key_packs", 64, "fp32"): Tile(32, 32, 32, 8, 2),
    ("key_packs", 128, "fp32"): Tile(16, 32, 16, 8, 2),
}


def kind_of(x: Tensor) -> str:
    """Return what tiles are chosen by: `fp32`, `hopper` (much shared memory, HGMMA) or `ampere`, the rest."""
    if x.element_size() == 4:
        return "fp32"
    return "hopper" if 90 <= capability_of(x.device) < 120 else "ampere"


def tile_of(direction: str, x: Tensor, *, packed: bool) -> Tile:
    """Return the tile of a kernel for tensors like `x`; `packed`: sequences hold several documents."""
    if INTERPRETED:
        return _KEY_INTERPRETED if direction.startswith("key") else _INTERPRETED
    rest = (64 if x.shape[3] <= 64 else 128, kind_of(x))
    plain = TILES[(direction, *rest)]
    return TILES.get((f"{direction}_packed", *rest), plain) if packed else plain


def splits_of(num_programs: int, device: torch.device) -> int:
    """Return into how many parts the rows of a tile of summary keys are split: enough programs to fill."""
    if INTERPRETED:
        return 2
    return min(8, max(1, 2 * gpu_of(device).processors // max(1, num_programs)))


def pack_of(group: int) -> int:
    """Return how many heads of a group stand in one tile: the largest power of 2 that divides the group."""
    return min(group & -group, _LARGEST_PACK)


def capability_of(device: torch.device) -> int:
    """Return the compute capability as a number, 90 for Hopper."""
    return gpu_of(device).capability


def precision(dtype: torch.dtype) -> str:
    """Return what fp32 products may round to: the setting of torch, full precision unless it says TF32."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def section_of(num_keys: int, key_bytes: int) -> int:
    """Return how many heads run side by side so that the keys and values they read stay in the cache."""
    return max(1, _CACHE_BYTES // max(1, 2 * num_keys * key_bytes))
