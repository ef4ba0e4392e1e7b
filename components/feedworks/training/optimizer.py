"""AdamW with decay where it belongs, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from feedworks.training.settings import TrainConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Weight matrices decay. Vectors (norms, biases) and embedding tables, also where an output layer is
    tied to one, do not: pulling them to zero shrinks the rows of rare items without evidence.

    Args:
        module: any module; frozen parameters are left out.
        weight_decay: of the first group.
    """
    tables = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
        for parameter in part.parameters(recurse=False)
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decays = [parameter for parameter in trainable if parameter.ndim >= 2 and id(parameter) not in tables]
    chosen = {id(parameter) for parameter in decays}
    rest = [parameter for parameter in trainable if id(parameter) not in chosen]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return fused AdamW (Loshchilov and Hutter, arXiv 1711.05101) over `parameter_groups`."""
    beta1, beta2 = config.betas
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), fused=True)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the rate of one step.

    Args:
        config: peak, warm-up, schedule and floor.
        step: steps done before this one, from 0.
        num_steps: steps of the whole run; ignored where the schedule is constant.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, num_steps - config.decay_steps)
    done = max(0.0, min(1.0, (step - begin) / max(1, num_steps - begin)))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
