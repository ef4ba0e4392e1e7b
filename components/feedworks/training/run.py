"""One training run in one process: steps, epochs, and the state between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.progress import Progress
from feedworks.training.batches import num_rows, split, to_device
from feedworks.training.checkpoint import load_state, split_tied
from feedworks.training.optimizer import build_optimizer, learning_rate
from feedworks.training.seed import seed_step
from feedworks.training.settings import TrainConfig
from feedworks.training.state import Position, StateStore

Batches = Callable[[int], Iterable[Any]]
Loss = Callable[[Any, Any], dict[str, Tensor]]
Evaluate = Callable[[Any, int], dict[str, float]]


class Run:
    """One training run in one process."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: TrainConfig,
        store: StateStore,
        fabric: Any,
        per_epoch: int | None,
    ) -> None:
        self.module = module
        self.config = config
        self.store = store
        self.fabric = fabric
        self.num_steps = config.epochs * per_epoch if per_epoch else None
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        module.to(fabric.device)
        self.model, self.optimizer = fabric.setup(_Loss(module, loss), build_optimizer(module, config))
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.one = torch.ones((), device=fabric.device)
        self.sums = torch.zeros(0, dtype=torch.float64, device=fabric.device)
        self.whole = fabric.world_size == 1 and config.accumulate == 1
        self.saved_s = self.started_s = time.monotonic()

    def train(
        self, batches: Batches, num_batches: int | None, evaluate: Evaluate | None, monitor: str
    ) -> None:
        """Run to the end, write the result and load the best weights."""
        self.module.train()
        with Progress("train", total=self.num_steps, start=self.position.step) as shown:
            while self.position.epoch < self.config.epochs and not (evaluate and self._out_of_patience()):
                self._epoch(batches, num_batches, shown)
                self._end_epoch(evaluate, monitor)
                self._save_if_due()
            shown.close(self._note)
        if self.best:
            load_state(self.module, expand_tied(self.best, self.module), source=self.store.folder)
        self.position.seconds += time.monotonic() - self.started_s
        if self.fabric.is_global_zero:
            self.store.finish(self.position, split_tied(self.module.state_dict())[0])
        self.fabric.barrier()

    def restore(self) -> None:
        """Take up the newest state; all processes must see the same one."""
        found = self.store.latest()
        step = found[0].step if found else 0
        if self.fabric.broadcast(step) != step:
            raise ConfigError(
                f"processes see different states in {self.store.folder}; use a folder that all share"
            )
        self.fabric.barrier()
        if found is None:
            return
        self.position, tensors = found
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "run": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        load_state(self.module, expand_tied(parts["model"], self.module), source=self.store.folder)
        self.best = {name: tensor.to(self.fabric.device) for name, tensor in parts["best"].items()}
        self.sums = parts["run"]["sums"].to(self.fabric.device)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _epoch(self, batches: Batches, num_batches: int | None, shown: Progress) -> None:
        position = self.position
        for batch in _from(batches(position.epoch), position.batch, num_batches):
            self._step(batch)
            position.batch += 1
            position.step += 1
            shown.advance(1, self._note)
            self._save_if_due()
        if position.batch == 0:
            raise DataError(
                f"epoch {position.epoch} has no training batches; check the number of training rows"
            )

    def _step(self, batch: Any) -> None:
        config, step = self.config, self.position.step
        seed_step(self.fabric.device, config.seed, "step", step, self.fabric.global_rank)
        rate = learning_rate(config, step, self.num_steps or 0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        added = self._backward_whole(batch) if self.whole else self._backward_parts(batch)
        self.sums = self.sums + added if self.sums.numel() else added
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _backward_whole(self, batch: Any) -> Tensor:
        terms = self.model(to_device(batch, self.fabric.device))
        weight = terms.pop("weight", None)
        self.fabric.backward(terms["loss"])
        return self._weighed(terms, num_rows(batch) if weight is None else weight)

    def _backward_parts(self, batch: Any) -> Tensor:
        # Each part adds weight * mean to the gradients; the sum over parts and processes is divided once, by
        # the weight of the whole batch. DDP has taken the mean over processes, hence the factor world.
        fabric, num_parts = self.fabric, self.config.accumulate
        parts = split(batch, rank=fabric.global_rank, world=fabric.world_size, num_parts=num_parts)
        sums: list[Tensor] = []
        for index, part in enumerate(parts):
            with fabric.no_backward_sync(self.model, enabled=index + 1 < len(parts)):
                terms = self.model(to_device(part.batch, fabric.device))
                weight = terms.pop("weight", part.weight) if part.weight else 0
                fabric.backward(terms["loss"] * weight)
            sums.append(self._weighed(terms, weight))
        total: Tensor = fabric.all_reduce(torch.stack(sums).sum(0), reduce_op="sum")
        scale = torch.where(total[0] > 0, fabric.world_size / total[0], 0.0).float()
        torch._foreach_mul_([x.grad for x in self.parameters if x.grad is not None], scale)
        return total

    def _weighed(self, terms: dict[str, Tensor], weight: Tensor | int) -> Tensor:
        # The weight, then weight * mean of each term: sums of these over parts give the mean over all.
        if not self.position.names:
            self.position.names = list(terms)
        values = [self.one, *(terms[name].detach() for name in self.position.names)]
        return torch.stack(values).double() * weight

    def _means(self) -> dict[str, float]:
        sums = self.sums.tolist()
        means = {
            name: sums[1 + i] / sums[0] if sums[0] else 0.0 for i, name in enumerate(self.position.names)
        }
        _require_finite(means, f"epoch {self.position.epoch} by step {self.position.step}")
        return means

    def _note(self) -> str:
        position = self.position
        row = position.history[-1] if position.batch == 0 and position.history else {}
        loss = row.get("train/loss") if row else self._means().get("loss")
        text = f"epoch {min(position.epoch + 1, self.config.epochs)}/{self.config.epochs}"
        text += f" loss {loss:.4f}" if loss is not None else ""
        return text + (f" best {position.best_metric:.4f}" if position.best_metric is not None else "")

    def _end_epoch(self, evaluate: Evaluate | None, monitor: str) -> None:
        position, config = self.position, self.config
        rate = learning_rate(config, position.step - 1, self.num_steps or 0)
        row = {"epoch": float(position.epoch), "step": float(position.step), "lr": rate}
        row |= {f"train/{name}": value for name, value in self._means().items()}
        last = position.epoch + 1 == config.epochs
        if evaluate is not None and (last or (position.epoch + 1) % config.eval_every == 0):
            metrics = self._evaluate(evaluate)
            if monitor not in metrics:
                raise ConfigError(f"monitored metric {monitor!r} is not among {', '.join(sorted(metrics))}")
            row |= metrics
            if position.best_metric is None or metrics[monitor] > position.best_metric:
                position.best_epoch, position.best_metric = position.epoch, metrics[monitor]
                kept = split_tied(self.module.state_dict())[0]
                self.best = {name: tensor.detach().clone() for name, tensor in kept.items()}
        position.history.append(row)
        position.epoch += 1
        position.batch = 0
        self.sums.zero_()

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.fabric.is_global_zero:
            seed_step(self.fabric.device, self.config.seed, "evaluate", self.position.epoch)
            self.module.eval()
            with torch.no_grad():
                found = evaluate(self.module, self.position.epoch)
            metrics = {name: float(value) for name, value in found.items()}
            _require_finite(metrics, f"the evaluation of epoch {self.position.epoch}")
            self.module.train()
        return dict(self.fabric.broadcast(metrics))

    def _out_of_patience(self) -> bool:
        since_best = self.position.epoch - (self.position.best_epoch + 1)
        return 0 < self.config.patience <= since_best

    def _save_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self.saved_s < self.config.checkpoint_every_s or not self.fabric.is_global_zero:
            return
        self._means()  # a state that has broken down must not replace a good one
        self.position.seconds += now_s - self.started_s
        self.started_s = now_s
        tensors = {f"model/{k}": v for k, v in split_tied(self.module.state_dict())[0].items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()} | {"run/sums": self.sums}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
        self.store.save(self.position, tensors)
        self.saved_s = time.monotonic()


class _Loss(nn.Module):
    """Module and loss as one forward, so that DDP sees whatever methods the loss calls."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        terms = self._loss(self.module, batch)
        if "loss" not in terms:
            raise ConfigError(f"the loss function returned {', '.join(terms)} and no 'loss'")
        return {name: term if name == "loss" else term.detach() for name, term in terms.items()}


def _require_finite(values: dict[str, float], where: str) -> None:
    if not all(map(math.isfinite, values.values())):
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ModelError(f"training broke down in {where}: {shown}; lower lr or set grad_clip")


def _from(batches: Iterable[Any], start: int, stop: int | None) -> Iterator[Any]:
    if isinstance(batches, Sequence):
        end = len(batches) if stop is None else min(stop, len(batches))
        return (batches[index] for index in range(start, end))
    return islice(batches, start, stop)


def expand_tied(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a full state_dict from one without the second names of tied weights."""
    tied = split_tied(module.state_dict())[1]
    return tensors | {name: tensors[kept] for name, kept in tied.items() if kept in tensors}
