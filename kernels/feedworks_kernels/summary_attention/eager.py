"""summary_attention in PyTorch operators."""

from feedworks_kernels.summary_attention.reference import gradient, summary_attention

__all__ = ["gradient", "summary_attention"]
