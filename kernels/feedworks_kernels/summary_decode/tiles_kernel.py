"""What the Triton kernels of summary_decode share: where they run, and the options of their compiler."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# In the interpreter bf16 arithmetic is silently wrong, so operands go up to fp32 right after each load.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's device.

    Raises:
        RuntimeError: it lies on a CPU, outside of Triton's interpreter.
    """
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    if INTERPRETED:
        return nullcontext()
    raise RuntimeError(f"Triton cannot run on {tensor.device}: unset FEEDWORKS_KERNELS, or use a CUDA device")
