"""Operators of the collection's hot paths: a readable definition, a fast PyTorch form, Triton kernels.

Depends on torch (and triton where installed) alone. `FEEDWORKS_KERNELS=reference|eager|triton` forces a form.
"""

from feedworks_kernels.beam_step import BeamStep, beam_step
from feedworks_kernels.residual_quantize import (
    ProductCodes,
    ResidualCodes,
    product_quantize,
    residual_quantize,
)
from feedworks_kernels.summary_attention import Rows, SummaryAttention, first_chunks, summary_attention
from feedworks_kernels.summary_decode import CacheLayout, DecodeStep, Places, SummaryCache, cache_attention
from feedworks_kernels.user_item_linear import user_item_linear, user_partial_linear

__all__ = [
    "BeamStep",
    "CacheLayout",
    "DecodeStep",
    "Places",
    "ProductCodes",
    "ResidualCodes",
    "Rows",
    "SummaryAttention",
    "SummaryCache",
    "beam_step",
    "cache_attention",
    "first_chunks",
    "product_quantize",
    "residual_quantize",
    "summary_attention",
    "user_item_linear",
    "user_partial_linear",
]
