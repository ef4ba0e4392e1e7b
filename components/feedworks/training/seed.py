"""Random streams that are named instead of consumed: the same seed and parts give the same numbers."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def mix(seed: int, *parts: int | str) -> int:
    """Hash a seed and the name of a stream to 63 bits, so that neighbouring seeds share nothing."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global streams of Python, NumPy and torch on all devices."""
    random.seed(mix(seed, "python"))
    np.random.seed(mix(seed, "numpy") % 2**32)
    torch.manual_seed(mix(seed, "torch"))


def step_generator(seed: int, *parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch stream for the named part of a run, such as `(seed, "negatives", epoch)`."""
    return torch.Generator(device=device).manual_seed(mix(seed, *parts))


def numpy_generator(seed: int, *parts: int | str) -> np.random.Generator:
    """Return a NumPy stream for the named part of a run."""
    return np.random.default_rng(mix(seed, *parts))


def seed_step(device: torch.device, seed: int, *parts: int | str) -> None:
    """Seed torch's global stream on the CPU and on one device.

    `torch.manual_seed` does the same for every backend in 100 µs; this takes 2 µs, little enough for
    every training step.
    """
    value = mix(seed, *parts)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
