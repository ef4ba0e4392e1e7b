"""A cache of near text and far summaries, and the attention of a new token over it. More: README.md here."""

from __future__ import annotations

from feedworks_kernels.summary_decode.attention import cache_attention
from feedworks_kernels.summary_decode.cache import DecodeStep, SummaryCache
from feedworks_kernels.summary_decode.extension import Extension
from feedworks_kernels.summary_decode.host import host_places, to_device
from feedworks_kernels.summary_decode.layout import CacheLayout, Places

__all__ = [
    "CacheLayout",
    "DecodeStep",
    "Extension",
    "Places",
    "SummaryCache",
    "cache_attention",
    "host_places",
    "to_device",
]
