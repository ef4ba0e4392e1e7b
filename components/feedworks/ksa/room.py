"""KSA (arXiv 2604.24432): how many streams a service has, and whether their caches fit into the memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch

from feedworks.errors import ConfigError, ModelError
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.settings import PackageConfig
from feedworks.metrics.memory import machine_bytes

STREAMS, CONTEXT = "FEEDWORKS_STREAMS", "FEEDWORKS_CONTEXT"
GIB = 1 << 30
# In a process of its own: whoever asks keeps some hundred MB of the GPU until it ends.
_FREE = "import torch; print(torch.cuda.mem_get_info()[0])"


def limits_here(limits: PackageConfig) -> PackageConfig:
    """Return the package's limits with those of the environment in their place.

    Raises:
        ConfigError: one is no number or out of range.
    """
    for field, name in (("max_streams", STREAMS), ("max_context", CONTEXT)):
        if not (given := os.environ.get(name)):
            continue
        try:
            changed: dict[str, Any] = {field: int(given)}
            limits = replace(limits, **changed)
        except ConfigError as error:  # the package's word for it means nothing to who set the variable
            raise ConfigError(f"{name}={given}: {str(error).partition(': ')[2]}") from None
        except ValueError:
            raise ConfigError(f"{name}: expected a whole number, got {given!r}") from None
    return limits


def check_room(model: Qwen3KsaForCausalLM, limits: PackageConfig, device: str, *, num_workers: int) -> None:
    """Refuse caches that do not fit beside the weights; what a step computes with comes on top.

    Args:
        model: the one that is served, on any device.
        limits: streams and their tokens.
        device: where it will be served, `cpu` or `cuda`.
        num_workers: processes, each with a model and a cache of its own.

    Raises:
        ConfigError: they do not fit, or the model has no cache.
        ModelError: the GPU does not answer.
    """
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    stream = KsaCache(model.config, 1, limits.max_context, dtype=model.dtype, device="meta").num_bytes
    there = free_bytes(device)
    if num_workers * (weights + limits.max_streams * stream) <= there:
        return
    most = max(0, (there // num_workers - weights) // stream)
    who = f"{num_workers} workers with " if num_workers > 1 else ""
    raise ConfigError(
        f"{who}{limits.max_streams} streams of {limits.max_context} tokens want "
        f"{_gib(num_workers * limits.max_streams * stream)} of cache beside {_gib(num_workers * weights)} of "
        f"weights, {device} has {_gib(there)}{' free' if device == 'cuda' else ''}: lower "
        f"{STREAMS}={limits.max_streams} or {CONTEXT}={limits.max_context}; at most {most} such streams fit"
    )


def free_bytes(device: str) -> int:
    """Return what is free on the GPU, or all memory of this machine or container.

    Raises:
        ModelError: the GPU does not answer.
    """
    if torch.device(device).type == "cpu":
        return machine_bytes()  # what is free there changes with what files are cached
    asked = subprocess.run([sys.executable, "-c", _FREE], capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = asked.stderr.strip().splitlines()[-1:] or [f"code {asked.returncode}"]
        raise ModelError(f"the GPU does not tell its free memory: {reason[0]}; see nvidia-smi")
    return int(asked.stdout)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB"
