"""What the host asks of a GPU before it launches, in one place: without a GPU, `ahead` answers for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Gpu(NamedTuple):
    """Sizes that decide which form of a kernel runs.

    Attributes:
        capability: compute capability as a number, 90 for Hopper.
        shared_bytes: shared memory that one program may have.
        processors: streaming multiprocessors.
    """

    capability: int
    shared_bytes: int
    processors: int


# Where there is no GPU: what the interpreter's tests are written for, and few programs, one after the other.
_NONE = Gpu(90, 227 << 10, 4)
_pretended: list[Gpu] = []


def gpu_of(device: torch.device) -> Gpu:
    """Return the sizes of the GPU that `device` is, or stands for."""
    if _pretended:
        return _pretended[-1]
    return _read(device) if device.type == "cuda" else _NONE


@cache
def _read(device: torch.device) -> Gpu:
    found: Any = torch.cuda.get_device_properties(device)
    capability = 10 * found.major + found.minor
    return Gpu(capability, int(found.shared_memory_per_block_optin), int(found.multi_processor_count))


@contextmanager
def pretended(gpu: Gpu) -> Iterator[None]:
    """Let CPU tensors stand for those of a GPU. Nothing may be launched inside, only compiled."""
    _pretended.append(gpu)
    try:
        yield
    finally:
        _pretended.pop()


def on(x: Tensor) -> AbstractContextManager[object]:
    """Return a block in which `x`'s device is the current one.

    Raises:
        RuntimeError: `x` lies on a device that has no Triton.
    """
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if _INTERPRETED or _pretended:
        return nullcontext()
    raise RuntimeError(f"the Triton kernel cannot run on {x.device}: unset FEEDWORKS_KERNELS or move to CUDA")
