"""cache_attention, and the cache's changes, as operators of torch: one node each in torch.compile and export.

Shape letters: B, H, G, Q, N, L, D as in the package's __init__.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation
from feedworks_kernels.summary_decode.layout import Places

OP = "summary_decode"


def _attend(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    with torch.no_grad():
        form = implementation(OP, query_BHQD.device, "cache_attention")
        out_BHQD: Tensor = form(query_BHQD, key_NGLD, value_NGLD, start_BQ, stop_BQ, slot_B, scale)
    return out_BHQD


cache_attention = library.custom_op(
    "feedworks::cache_attention",
    _attend,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor start, Tensor stop, Tensor slot, float scale) "
    "-> Tensor",
)


def _write(
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    new_key_BGQD: Tensor,
    new_value_BGQD: Tensor,
    slot_B: Tensor,
    write_BQ: Tensor,
) -> None:
    with torch.no_grad():
        form = implementation(OP, key_NGLD.device, "write")
        form(key_NGLD, value_NGLD, new_key_BGQD, new_value_BGQD, slot_B, write_BQ)


def _move(key_NGLD: Tensor, value_NGLD: Tensor, slot_B: Tensor, move_BP: Tensor) -> None:
    with torch.no_grad():
        implementation(OP, key_NGLD.device, "move")(key_NGLD, value_NGLD, slot_B, move_BP)


cache_write = library.custom_op(
    "feedworks::cache_write",
    _write,
    mutates_args=("key", "value"),
    schema="(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor slot, Tensor write) "
    "-> ()",
)
cache_move = library.custom_op(
    "feedworks::cache_move",
    _move,
    mutates_args=("key", "value"),
    schema="(Tensor(a!) key, Tensor(b!) value, Tensor slot, Tensor move) -> ()",
)


@cache_attention.register_fake
def _(query, key, value, start, stop, slot, scale):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return query.new_empty(query.shape)


@cache_write.register_fake
def _(key, value, new_key, new_value, slot, write):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return None


@cache_move.register_fake
def _(key, value, slot, move):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return None


def attend(
    query_BHQD: Tensor,
    caches: tuple[Tensor, Tensor],
    slices: tuple[Tensor, Tensor],
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """Attend over slices of the cache, unchecked. As `feedworks_kernels.cache_attention`.

    Args:
        query_BHQD: queries.
        caches: keys and values (N, G, L, D).
        slices: start and stop (B, Q).
        slot_B: which of the N slots each sequence reads.
        scale: factor of the products.
    """
    run = cache_attention if torch.compiler.is_compiling() else _attend
    out_BHQD: Tensor = run(query_BHQD, *caches, *slices, slot_B, scale)
    return out_BHQD


def write(caches: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], places: Places) -> None:
    """Put the new keys and values of a step into the cache.

    Args:
        caches: keys and values (N, G, L, D); they change.
        rows: new keys and values (B, G, Q, D).
        places: where they go.
    """
    run = cache_write if torch.compiler.is_compiling() else _write
    run(*caches, *rows, places.slot_B, places.write_BQ)


def move(caches: tuple[Tensor, Tensor], places: Places) -> None:
    """Move chunks that have ended into the ring and their summaries behind the others."""
    run = cache_move if torch.compiler.is_compiling() else _move
    run(*caches, places.slot_B, places.move_BP)
