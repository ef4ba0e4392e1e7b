"""Tiny decoders, and a tiny random Qwen3 checkpoint as its owners would publish it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.model import Qwen3KsaForCausalLM

Model = TypeVar("Model", Qwen3ForCausalLM, Qwen3KsaForCausalLM)
VOCAB, EOS, PAD = 97, 96, 95
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,  # large enough that tokens differ in what they read
    "eos_token_id": None,
    "pad_token_id": None,
}
HYBRID: list[int | None] = [2, 1, 0, None]


def decoder(**settings: Any) -> Qwen3KsaForCausalLM:
    """Return a decoder ready for inference, the same for the same settings."""
    torch.manual_seed(0)
    chosen = {"chunk": 4, "windows": HYBRID, **settings}
    return uneven(Qwen3KsaForCausalLM(Qwen3KsaConfig(**(SIZES | chosen))).eval())


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Return token ids that are neither the end nor padding."""
    return torch.randint(0, PAD, shape, generator=torch.Generator().manual_seed(seed))


def qwen3(**settings: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    return uneven(Qwen3ForCausalLM(Qwen3Config(**(SIZES | settings))).eval())


@torch.no_grad()
def uneven(model: Model) -> Model:
    """Move what starts as ones and zeros, which would hide that it is left out."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def published(folder: Path, *, shard: str = "5GB", dtype: Any = torch.float32, **settings: Any) -> Path:
    """Write a random Qwen3 checkpoint."""
    qwen3(**settings).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder
