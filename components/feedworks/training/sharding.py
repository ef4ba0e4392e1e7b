"""Weights cut over processes (PyTorch's `fully_shard`), and put together again.

Each process keeps a share of every weight, gradient and moment. A unit of the model gathers its weights
when its forward or backward pass begins and lets them go when it ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Cut the weights of a module in place, unit by unit; what is in no unit is one with the module itself.

    A unit is a module whose class is named in `_no_split_modules` of the model or a part of it, the
    convention of Hugging Face transformers. It must be used by calling it: only a call gathers its weights.

    Args:
        module: on the CPU or on the device of the mesh; ends on the latter.
        mesh: one dimension, a `torch.distributed.device_mesh.DeviceMesh`.
    """
    from torch.distributed.fsdp import fully_shard

    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in module.modules():
        if type(part).__name__ in named:
            fully_shard(part, mesh=mesh)
    # Without this the module itself keeps its weights between the passes, and its parameters are whole then.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module


def is_cut(tensor: Tensor) -> bool:
    """Tell whether this process holds a share of the tensor only."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together from all processes on the CPU, others as they are; all must ask for it."""
    if not is_cut(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full.cpu()


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor, in the same memory; others as they are."""
    return tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def cut_like(tensor: Tensor, own: Tensor) -> Tensor:
    """Cut a whole tensor, which all processes hold, as another one is cut; a cut one stays as it is."""
    if not is_cut(own) or is_cut(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, places = own.device_mesh, own.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(own.device), mesh, places, src_data_rank=None)


def round_weights(module: nn.Module) -> None:
    """Turn the floating-point parameters of a module into bfloat16; ties and buffers stay as they are."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
