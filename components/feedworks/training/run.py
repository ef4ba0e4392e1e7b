"""One training run in one process: epochs, evaluation, the best weights, and the state between starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.progress import Progress
from feedworks.training.optimizer import learning_rate
from feedworks.training.processes import require_same
from feedworks.training.seed import seed_step
from feedworks.training.settings import TrainConfig
from feedworks.training.state import Position, StateStore
from feedworks.training.step import Stepper

Batches = Callable[[int], Iterable[Any]]
Evaluate = Callable[[Any, int], dict[str, float]]


class Run:
    """A stepper that goes through epochs, and the folder that its state is kept in."""

    def __init__(
        self, stepper: Stepper, config: TrainConfig, store: StateStore, fabric: Any, num_steps: int | None
    ) -> None:
        self.position = Position()
        self._stepper = stepper
        self._config = config
        self._store = store
        self._fabric = fabric
        self._num_steps = num_steps
        self._best: dict[str, Tensor] = {}
        self._saved_s = self._started_s = time.monotonic()

    def restore(self) -> None:
        """Take up the newest state, if there is one.

        Raises:
            ConfigError: processes see different states.
            ModelError: all states are damaged.
        """
        found = self._store.latest()
        require_same(self._fabric, found[0].step if found else 0, self._store.folder)
        if found is not None:
            self.position, tensors = found
            best = {name: x for name, x in tensors.items() if name.startswith("best/")}
            self._stepper.load(tensors, self.position.names, self._store.folder)
            self._best = self._stepper.placed({name.removeprefix("best/"): x for name, x in best.items()})

    def train(
        self, batches: Batches, num_batches: int | None, evaluate: Evaluate | None, monitor: str
    ) -> None:
        """Run to the end, load the best weights and write the result; see `feedworks.training.loop.fit`."""
        module, position = self._stepper.module, self.position
        module.train()
        with Progress("train", total=self._num_steps, start=position.step) as shown:
            while position.epoch < self._config.epochs and not (evaluate and self._out_of_patience()):
                self._epoch(batches, num_batches, shown)
                self._end_epoch(evaluate, monitor)
                self._save_if_due()
            shown.close(self._note)
        if self._best:
            self._stepper.load_weights(self._best, self._store.folder)
        position.seconds += time.monotonic() - self._started_s
        weights = self._stepper.gathered(self._stepper.weights())
        if self._fabric.is_global_zero:
            self._store.finish(position, weights)
        self._stepper.finish()
        self._fabric.barrier()

    def _epoch(self, batches: Batches, num_batches: int | None, shown: Progress) -> None:
        position = self.position
        for batch in _from(batches(position.epoch), position.batch, num_batches):
            self._stepper.step(batch, position.step)
            position.names = self._stepper.names
            position.batch += 1
            position.step += 1
            shown.advance(1, self._note)
            self._save_if_due()
        if position.batch == 0:
            raise DataError(
                f"epoch {position.epoch} has no training batches; check the number of training rows"
            )

    def _end_epoch(self, evaluate: Evaluate | None, monitor: str) -> None:
        position, config = self.position, self._config
        rate = learning_rate(config, position.step - 1, self._num_steps or 0)
        row = {"epoch": float(position.epoch), "step": float(position.step), "lr": rate}
        row |= {f"train/{name}": value for name, value in self._means().items()}
        last = position.epoch + 1 == config.epochs
        if evaluate is not None and (last or (position.epoch + 1) % config.eval_every == 0):
            row |= self._evaluate(evaluate, monitor)
        position.history.append(row)
        position.epoch += 1
        position.batch = 0
        self._stepper.reset()

    def _evaluate(self, evaluate: Evaluate, monitor: str) -> dict[str, float]:
        module, position = self._stepper.module, self.position
        metrics: dict[str, float] = {}
        # With FSDP no process has a model of its own: all evaluate, and the first one's numbers count.
        if self._fabric.is_global_zero or self._stepper.cut:
            seed_step(self._fabric.device, self._config.seed, "evaluate", position.epoch)
            module.eval()
            with torch.no_grad():
                found = self._stepper.inside(lambda module: evaluate(module, position.epoch))
            metrics = {name: float(value) for name, value in found.items()}
            module.train()
        metrics = self._fabric.broadcast(metrics)
        _require_finite(metrics, f"the evaluation of epoch {position.epoch}")
        if monitor not in metrics:
            raise ConfigError(f"monitored metric {monitor!r} is not among {', '.join(sorted(metrics))}")
        if position.best_metric is None or metrics[monitor] > position.best_metric:
            position.best_epoch, position.best_metric = position.epoch, metrics[monitor]
            self._best = {name: tensor.detach().clone() for name, tensor in self._stepper.weights().items()}
        return metrics

    def _out_of_patience(self) -> bool:
        since_best = self.position.epoch - (self.position.best_epoch + 1)
        return 0 < self._config.patience <= since_best

    def _means(self) -> dict[str, float]:
        means = self._stepper.means()
        _require_finite(means, f"epoch {self.position.epoch} by step {self.position.step}")
        return means

    def _note(self) -> str:
        position, num_epochs = self.position, self._config.epochs
        between = position.batch == 0 and position.history
        loss = position.history[-1]["train/loss"] if between else self._means()["loss"]
        text = f"epoch {min(position.epoch + 1, num_epochs)}/{num_epochs} loss {loss:.4f}"
        return text + (f" best {position.best_metric:.4f}" if position.best_metric is not None else "")

    def _save_if_due(self) -> None:
        first, cut = self._fabric.is_global_zero, self._stepper.cut
        now_s = time.monotonic()
        due = now_s - self._saved_s >= self._config.checkpoint_every_s
        if cut:  # all must bring their shares, when the first one's clock says so
            due = self._fabric.broadcast(due)
        if not due or not (first or cut):
            return
        self._means()  # a state that has broken down must not replace a good one
        self.position.seconds += now_s - self._started_s
        self._started_s = now_s
        best = {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors = self._stepper.gathered(self._stepper.tensors() | best)
        if first:
            self._store.save(self.position, tensors)
        self._saved_s = time.monotonic()


def _require_finite(values: dict[str, float], where: str) -> None:
    wrong = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ModelError(f"training broke down in {where}: {', '.join(wrong)}; lower lr or set grad_clip")


def _from(batches: Iterable[Any], start: int, stop: int | None) -> Iterator[Any]:
    if isinstance(batches, Sequence):
        end = len(batches) if stop is None else min(stop, len(batches))
        return (batches[index] for index in range(start, end))
    return islice(batches, start, stop)
