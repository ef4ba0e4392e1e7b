"""One training loop: any loss over NamedTuple batches, on one device or under torchrun, with exact resume.

Nothing random is carried from step to step: dropout of step n is drawn from a stream named by (seed, n), on a
GPU (seed, n, process), so weights, optimiser moments and the position are the whole state. On the CPU a run
that is killed and started again ends with the same bits as one that was not, and one of several processes
follows the losses of one process to rounding; see `feedworks.training.whole`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feedworks.errors import ConfigError
from feedworks.training.batches import num_rows
from feedworks.training.checkpoint import load_state
from feedworks.training.processes import (
    expected_warnings,
    flushed_denormals,
    is_grouped,
    launch,
    require_same,
)
from feedworks.training.run import Batches, Evaluate, Run
from feedworks.training.settings import TrainConfig
from feedworks.training.sharding import round_weights
from feedworks.training.state import Position, StateStore
from feedworks.training.step import Loss, Stepper, expand_tied

# These change where the run computes and how often it writes. Its states are whole: one that several
# processes have begun may be ended by one, to rounding.
_FREE_SETTINGS = ("accelerator", "checkpoint_every_s", "devices", "strategy")


class FitResult(NamedTuple):
    """What a run gives beside the weights.

    Attributes:
        history: one row per epoch: `epoch` (from 0), `step`, `lr`, `train/<term>`, what `evaluate` returned.
        best_epoch: the epoch whose weights the module holds, -1 where nothing was evaluated.
        best_metric: the monitored metric there.
        num_steps: optimiser steps.
        seconds: time spent, over all starts of the run.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_metric: float | None
    num_steps: int
    seconds: float


def fit(
    module: nn.Module,
    *,
    batches: Batches,
    num_batches: int | None,
    loss: Loss,
    config: TrainConfig,
    state_dir: str | Path,
    evaluate: Evaluate | None = None,
    monitor: str = "valid/ndcg@10",
) -> FitResult:
    """Train `module` in place; it ends in eval mode with the best weights, or the last without `evaluate`.

    Under torchrun every process calls this with the same arguments; each trains on its rows of each batch and
    all end with the same weights. The state folder must be one that all processes see.

    Args:
        module: what is trained, all in train mode; a part that must stay in eval mode overrides `train`.
            Frozen parameters (`requires_grad` off) stay as they are. With FSDP a copy trains, cut over the
            processes, and the module gets its weights at the end: loss and evaluate use the one handed in.
        batches: epoch -> the batches of all processes, NamedTuples of CPU tensors with the rows first. Must
            give the same batches for the same epoch; a Sequence resumes without building the earlier ones.
        num_batches: batches of an epoch; None takes what `batches` yields.
        loss: (module, batch) -> scalar tensors; `loss` is minimised, the others are averaged for the history.
            An entry `weight` is the number of terms that the means run over (default: rows), so that unequal
            parts of a batch add up to the mean over the whole; where it is 0 the means must be finite.
            Randomness must come from torch's global stream.
        config: how to train.
        state_dir: holds the state and the result; a finished one returns at once.
        evaluate: (module in eval mode, epoch) -> metrics; in the first process only, without gradients. With
            FSDP in all processes, which must call the same parts of the module in the same order.
        monitor: the metric, larger is better, that chooses the best epoch and stops the run early.

    Raises:
        ConfigError: `state_dir` holds another run, or the settings do not fit the machine or the data.
        DataError: an epoch has no batches or a batch no rows.
        ModelError: the loss is not finite, or the state cannot be read or written.
    """
    if config.precision == "bf16-true":
        round_weights(module)
    store = StateStore(Path(state_dir))
    facts = _facts(module, batches, num_batches, config, monitor if evaluate else "")
    if not is_grouped() and (done := _finished(store, facts, module)) is not None:
        return done  # without the 3 s that launching takes
    fabric = launch(config)
    with expected_warnings(), flushed_denormals(), store.locked() if fabric.is_global_zero else nullcontext():
        fabric.barrier()
        done = _finished(store, facts, module)
        require_same(fabric, done is not None, store.folder)
        if done is not None:
            return done
        if fabric.is_global_zero:
            store.record(facts)
        per_epoch = num_batches or _length(batches, config)
        num_steps = config.epochs * per_epoch if per_epoch else None
        run = Run(Stepper(module, loss, config, fabric, num_steps), config, store, fabric, num_steps)
        run.restore()
        run.train(batches, num_batches, evaluate, monitor)
    module.eval()
    return _result(run.position)


def _finished(store: StateStore, facts: dict[str, Any], module: nn.Module) -> FitResult | None:
    store.claim(facts)
    done = store.finished()
    if done is None:
        return None
    position, weights = done
    load_state(module, expand_tied(weights, module), source=store.folder)
    module.eval()
    return _result(position)


def _facts(
    module: nn.Module, batches: Batches, num_batches: int | None, config: TrainConfig, monitor: str
) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE_SETTINGS}
    settings["betas"] = list(config.betas)
    if config.schedule != "wsd":
        del settings["decay_steps"]
    first = next(iter(batches(0)), ())
    if first and num_rows(first) > config.batch_size:
        raise ConfigError(f"the first batch has {num_rows(first)} rows, but batch_size={config.batch_size}")
    shapes = "".join(f"{name}{tuple(tensor.shape)}" for name, tensor in module.state_dict().items())
    shapes += "".join(f"{name} frozen" for name, x in module.named_parameters() if not x.requires_grad)
    return settings | {
        "monitor": monitor,
        "num_batches": num_batches,
        "model": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "first_batch": _digest(first),
    }


def _digest(batch: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for value in batch:
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def _length(batches: Batches, config: TrainConfig) -> int | None:
    first = batches(0)
    if isinstance(first, Sized):
        return len(first)
    if config.schedule != "constant":
        raise ConfigError(f"schedule={config.schedule} needs num_batches, or batches with a length")
    return None


def _result(position: Position) -> FitResult:
    return FitResult(
        position.history, position.best_epoch, position.best_metric, position.step, position.seconds
    )
