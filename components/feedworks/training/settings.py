"""What a training run is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from feedworks.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `feedworks.training.loop.fit`.

    Attributes:
        epochs: passes over the data.
        batch_size: rows of one optimiser step over all processes; the caller's `batches` reads it.
        lr: peak learning rate of AdamW.
        weight_decay: decoupled decay of weight matrices; embeddings, norms and biases have none.
        betas: decay of AdamW's first and second moment.
        warmup_steps: steps of linear rise from 0 to `lr`.
        schedule: what follows: constant, a cosine or a line down to `min_lr_ratio * lr`, or `wsd`: constant
            until the last `decay_steps`, which are a line down.
        min_lr_ratio: where the fall ends, as a share of `lr`.
        decay_steps: length of the fall of `wsd`; nothing else reads it.
        grad_clip: largest norm of the gradient; 0 is no limit.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        precision: `32-true`, `bf16-mixed` (float32 weights, bfloat16 arithmetic), or `bf16-true` (weights and
            moments in bfloat16, buffers as they are: half the memory, but a step below 1/256 of a weight is
            rounded away).
        accelerator: `auto` takes a CUDA device where there is one.
        devices: processes expected; `auto` takes what torchrun started, or one.
        strategy: what several processes keep: `ddp` all weights each, `fsdp` a share of them each.
        seed: names the random streams of dropout and data order.
        checkpoint_every_s: seconds between writes of the training state; 0 writes after every step.
        patience: epochs without a better monitored metric before the run stops; 0 never stops early.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
    """

    epochs: int
    batch_size: int
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    min_lr_ratio: float = 0.0
    decay_steps: int = 0
    grad_clip: float = 0.0
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: str = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    seed: int = 0
    checkpoint_every_s: float = 60.0
    patience: int = 0
    eval_every: int = 1

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "batch_size", "accumulate", "eval_every")
        not_negative = (
            "lr",
            "weight_decay",
            "warmup_steps",
            "decay_steps",
            "grad_clip",
            "checkpoint_every_s",
            "patience",
            "seed",
        )
        for name in at_least_one:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in not_negative:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "between 0 and 1")
        betas_fit = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(betas_fit, "betas", self.betas, "two numbers from 0 to below 1")
        _one_of("schedule", self.schedule, ("constant", "cosine", "linear", "wsd"))
        falls = (self.schedule == "wsd") == (self.decay_steps > 0)
        _require(falls, "decay_steps", self.decay_steps, "at least 1 with schedule=wsd, 0 without")
        _one_of("precision", self.precision, ("32-true", "bf16-mixed", "bf16-true"))
        _one_of("accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        _one_of("strategy", self.strategy, ("ddp", "fsdp"))
        counted = self.devices == "auto" or (self.devices.isdecimal() and int(self.devices) >= 1)
        _require(counted, "devices", self.devices, "auto or a count")


def seeded(config: TrainConfig, seed: int) -> TrainConfig:
    """Return the settings with a run's seed added to their own."""
    return replace(config, seed=config.seed + seed)


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"training setting {name}={value!r}: expected {expected}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(choices)}")
