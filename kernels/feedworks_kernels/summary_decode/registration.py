"""cache_attention as an operator of torch, which torch.export and torch.compile keep as one node.

Shape letters: B, H, G, Q, N, L, D as in the package's __init__.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation

OP = "summary_decode"


def run(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """Choose a form by the device and call it."""
    with torch.no_grad():
        form = implementation(OP, query_BHQD.device, "cache_attention")
        out_BHQD: Tensor = form(query_BHQD, key_NGLD, value_NGLD, start_BQ, stop_BQ, slot_B, scale)
    return out_BHQD


cache_attention = library.custom_op(
    "feedworks::cache_attention",
    run,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor start, Tensor stop, Tensor slot, float scale) "
    "-> Tensor",
)


@cache_attention.register_fake
def _(query, key, value, start, stop, slot, scale):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return query.new_empty(query.shape)
