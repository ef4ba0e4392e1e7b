"""Which implementation of an operator runs: one rule for the whole package.

A CUDA tensor, triton installed and a `kernel.py` in the operator's folder: the Triton kernel. Otherwise
`eager`, the fast form in plain PyTorch operators. `FEEDWORKS_KERNELS=reference|eager|triton` forces one;
`reference` is the definition, written to be read and slow.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

VARIABLE = "FEEDWORKS_KERNELS"
_MODULES = {"reference": "reference", "eager": "eager", "triton": "kernel"}


def implementation(op: str, device: torch.device, part: str = "") -> Callable[..., Any]:
    """Return the function that computes `op` for tensors on `device`.

    Args:
        op: name of the operator's folder; every implementation module in it has a function of that name.
        device: where the operands live.
        part: name of another function of the same modules, such as a gradient.

    Raises:
        ValueError: `FEEDWORKS_KERNELS` holds an unknown word.
        RuntimeError: `FEEDWORKS_KERNELS=triton` and the operator has no kernel, or triton is not installed.
    """
    return _load(op, _choose(op, device), part or op)


def _choose(op: str, device: torch.device) -> str:
    forced = os.environ.get(VARIABLE, "")
    if not forced:
        return "triton" if device.type == "cuda" and _has_kernel(op) else "eager"
    if forced not in _MODULES:
        raise ValueError(f"{VARIABLE}={forced!r}: expected one of {', '.join(_MODULES)}, or leave it unset")
    if forced == "triton" and not _has_kernel(op):
        raise RuntimeError(
            f"{VARIABLE}=triton, but {op} has no Triton kernel here: install triton or unset it"
        )
    return forced


@cache
def _has_kernel(op: str) -> bool:
    has_source = importlib.util.find_spec(f"{__package__}.{op}.kernel") is not None
    return has_source and importlib.util.find_spec("triton") is not None


@cache
def _load(op: str, name: str, part: str) -> Callable[..., Any]:
    module = importlib.import_module(f"{__package__}.{op}.{_MODULES[name]}")
    function: Callable[..., Any] = getattr(module, part)
    return function
