"""One optimiser step: from a batch to changed weights, on one process or on its share of several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feedworks.errors import ConfigError
from feedworks.training.batches import num_rows, split, to_device
from feedworks.training.checkpoint import load_state, split_tied
from feedworks.training.optimizer import build_optimizer, learning_rate
from feedworks.training.seed import seed_step
from feedworks.training.settings import TrainConfig
from feedworks.training.sharding import cut_like, local, whole
from feedworks.training.whole import part_of

Loss = Callable[[Any, Any], dict[str, Tensor]]


class Stepper:
    """A module, its loss and its optimiser, and the means of the loss since the last `reset`.

    With FSDP it trains a copy of the module, cut over the processes; `finish` brings the weights back.

    Args:
        module: trained in place; moved to the device of `fabric`.
        loss: (module, batch) -> terms, see `feedworks.training.loop.fit`.
        config: learning rate, clipping, accumulation, seed.
        fabric: a launched `lightning.fabric.Fabric`.
        num_steps: steps of the whole run, for the schedule.
    """

    def __init__(
        self, module: nn.Module, loss: Loss, config: TrainConfig, fabric: Any, num_steps: int | None
    ) -> None:
        self.names: list[str] = []
        self._config = config
        self._fabric = fabric
        self._num_steps = num_steps or 0
        self._grouped = fabric.world_size > 1
        self.cut = self._grouped and config.strategy == "fsdp"
        self._original = module
        self.module = module = copy.deepcopy(module) if self.cut else module
        if not self.cut:
            module.to(fabric.device)
        self._tied = split_tied(module.state_dict())[1]
        self._bare = model = _Loss(module, loss)
        # One process calls the module bare: Fabric's wrapper costs 0.1 ms a step and adds nothing there.
        self._model = fabric.setup_module(model) if self._grouped else model
        self._optimizer = build_optimizer(module, config)
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._one = torch.ones((), device=fabric.device)
        self._cut_noise = fabric.device.type == "cpu"
        self._sums = torch.zeros(0, dtype=torch.float64, device=fabric.device)

    def step(self, batch: Any, number: int) -> None:
        """Do the step with this number, counted from 0 over the whole run."""
        config = self._config
        self._seed(number)
        rate = learning_rate(config, number, self._num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        whole = config.accumulate == 1 and not self._grouped
        added = self._backward_whole(batch) if whole else self._backward_parts(batch, number)
        self._sums = self._sums + added if self._sums.numel() else added
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self._parameters, config.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _seed(self, number: int) -> None:
        # On a CPU all processes and parts draw the noise of the whole batch and keep their rows of it. That
        # would cost a GPU as many times more as there are processes: there each has a stream of its own.
        own = 0 if self._cut_noise else self._fabric.global_rank
        seed_step(self._fabric.device, self._config.seed, "step", number, own)

    def means(self) -> dict[str, float]:
        """Return the mean of each term over all rows, parts and processes since the last `reset`."""
        weight, *sums = self._sums.tolist() or [0.0]
        return {name: total / weight if weight else 0.0 for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Start the means afresh."""
        self._sums = torch.zeros_like(self._sums)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights and buffers as they lie, cut or whole, tied ones once."""
        return {name: x for name, x in self.module.state_dict().items() if name not in self._tied}

    def load_weights(self, weights: dict[str, Tensor], source: Path) -> None:
        """Take up what `weights` gave, cut or whole.

        Raises:
            ModelError: the weights are of another model.
        """
        tied = {name: weights[kept] for name, kept in self._tied.items() if kept in weights}
        load_state(self.module, self.placed(weights | tied), source=source)

    def placed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights on this process's device, cut as the module is."""
        if not self.cut:
            return {name: x.to(self._fabric.device) for name, x in weights.items()}
        own = self.module.state_dict()
        return {name: cut_like(x, own.get(name, x)) for name, x in weights.items()}

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors whole, in the first process; with FSDP all processes must call this."""
        if not self.cut:
            return dict(tensors)
        found = {}
        for name in sorted(tensors):  # all in one order; that of a file is any
            full = whole(tensors[name])
            if self._fabric.is_global_zero:
                found[name] = full
        return found

    def inside(self, call: Callable[[nn.Module], Any]) -> Any:
        """Return call(module), with FSDP inside a forward pass, which gathers the weights for it."""
        return self._bare(Inside(call)) if self.cut else call(self.module)

    def finish(self) -> None:
        """Bring the trained weights into the module that was given, whole and on its device."""
        if self.cut:
            weights = {name: whole(x) for name, x in self.weights().items()}
            load_state(self._original, expand_tied(weights, self._original), source=Path())

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimiser moments and sums: with `names` all that later steps depend on."""
        tensors = {f"model/{k}": v for k, v in self.weights().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
        return tensors | {"sums": self._sums}

    def load(self, tensors: Mapping[str, Tensor], names: list[str], source: Path) -> None:
        """Take up what `tensors` and `names` gave, whole.

        Raises:
            ModelError: the weights are of another model.
        """
        weights = {name.removeprefix("model/"): x for name, x in tensors.items() if name.startswith("model/")}
        self.load_weights(weights, source)
        owners = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                own = owners[int(index)]
                like = cut_like(tensor, own) if self.cut and tensor.shape == own.shape else tensor
                moments.setdefault(int(index), {})[key] = like
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._sums = tensors["sums"].to(self._fabric.device)
        self.names = names

    def _backward_whole(self, batch: Any) -> Tensor:
        with self._fabric.autocast():
            terms = self._model(to_device(batch, self._fabric.device))
        weight = terms.pop("weight", None)
        terms["loss"].backward()
        return self._weighed(terms, num_rows(batch) if weight is None else weight)

    def _backward_parts(self, batch: Any, number: int) -> Tensor:
        # Each part adds weight * mean to the gradients; the sum over parts and processes is divided once, by
        # the weight of the whole batch. DDP and FSDP take the mean over processes, hence the factor world.
        fabric, num_parts = self._fabric, self._config.accumulate
        parts = split(batch, rank=fabric.global_rank, world=fabric.world_size, num_parts=num_parts)
        sums: list[Tensor] = []
        for index, part in enumerate(parts):
            if self._cut_noise:
                self._seed(number)
            like_whole = part_of(batch, part, self.module, cut_noise=self._cut_noise)
            with self._exchange_after(index + 1 == len(parts)), like_whole:
                with fabric.autocast():
                    terms = self._model(to_device(part.batch, fabric.device))
                weight = terms.pop("weight", part.weight) if part.weight else 0
                fabric.backward(terms["loss"] * weight)
            sums.append(self._weighed(terms, weight))
        total: Tensor = fabric.all_reduce(torch.stack(sums).sum(0), reduce_op="sum")
        scale = torch.where(total[0] > 0, fabric.world_size / total[0], 0.0).float()
        gradients = [x.grad for x in self._parameters if x.grad is not None]
        torch._foreach_mul_([local(x) for x in gradients] if self.cut else gradients, scale)
        return total

    def _exchange_after(self, last: bool) -> Any:
        # Processes exchange gradients once a step, in the backward pass of the last part.
        return (
            self._fabric.no_backward_sync(self._model, enabled=not last) if self._grouped else nullcontext()
        )

    def _weighed(self, terms: dict[str, Tensor], weight: Tensor | int) -> Tensor:
        # The weight, then weight * mean of each term: sums of these over parts give the mean over all.
        if not self.names:
            self.names = sorted(terms.keys() - {"weight"})
        values = [self._one, *(terms[name].detach() for name in self.names)]
        return torch.stack(values).double() * weight


def expand_tied(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a full state_dict from one without the second names of tied weights."""
    tied = split_tied(module.state_dict())[1]
    return tensors | {name: tensors[kept] for name, kept in tied.items() if kept in tensors}


class Inside(NamedTuple):
    """What to call inside a forward pass in place of the loss."""

    call: Callable[[nn.Module], Any]


class _Loss(nn.Module):
    """Module and loss as one forward, so that DDP and FSDP see whatever methods the loss calls."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Any) -> Any:
        if isinstance(batch, Inside):
            return batch.call(self.module)
        terms = self._loss(self.module, batch)
        if "loss" not in terms:
            raise ConfigError(f"the loss function returned {', '.join(terms)} and no 'loss'")
        return {name: x.float() if name == "loss" else x.detach().float() for name, x in terms.items()}
