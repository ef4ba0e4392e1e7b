"""A small problem with everything in it that can break exact resume; also a script that trains it.

Dropout, moments, a schedule, tied weights, a frozen part, a buffer that counts, best weights, early stopping.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feedworks.configuration import with_overrides
from feedworks.training.loop import FitResult, fit
from feedworks.training.seed import step_generator
from feedworks.training.settings import TrainConfig

NUM_ROWS, NUM_ITEMS, WIDTH = 193, 30, 16  # the last batch of an epoch has one row
METRIC = "valid/ndcg@10"
NUM_BATCHES = 7
BEST_EPOCH = 15


class ToyBatch(NamedTuple):
    item_B: Tensor
    next_B: Tensor
    weight_B: Tensor
    negatives: Tensor | None


class Toy(nn.Module):
    _no_split_modules = ("Sequential",)  # with FSDP a unit of its own

    def __init__(self, p_dropout: float = 0.2) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_ITEMS, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(p_dropout)
        )
        self.out = nn.Linear(WIDTH, NUM_ITEMS)
        self.out.weight = self.table.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("num_calls", torch.tensor(0))
        with torch.no_grad():
            generator = step_generator(0, "toy")
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        self.frozen.requires_grad_(False)

    def encode(self, item_B: Tensor) -> Tensor:
        return self.inner(self.frozen(self.table(item_B)))

    def logits(self, item_B: Tensor) -> Tensor:
        if self.training:
            self.num_calls += 1
        return self.out(self.encode(item_B))


def data() -> ToyBatch:
    generator = step_generator(1, "data")
    item = torch.randint(NUM_ITEMS, (NUM_ROWS,), generator=generator)
    noise = torch.randint(3, (NUM_ROWS,), generator=generator)
    weight = torch.randint(4, (NUM_ROWS,), generator=generator).float()
    return ToyBatch(item, (item * 7 + noise) % NUM_ITEMS, weight, None)


def batches(epoch: int) -> list[ToyBatch]:
    rows = data()
    order = torch.randperm(NUM_ROWS, generator=step_generator(2, "order", epoch))
    return [ToyBatch(rows.item_B[i], rows.next_B[i], rows.weight_B[i], None) for i in order.split(32)]


def stream(epoch: int) -> Iterator[ToyBatch]:
    yield from batches(epoch)


def loss(module: Any, batch: ToyBatch) -> dict[str, Tensor]:
    logits = module.logits(batch.item_B)
    each = nn.functional.cross_entropy(logits, batch.next_B, reduction="none")
    weight = batch.weight_B.sum()
    mean = (each * batch.weight_B).sum() / weight.clamp(min=1)
    return {"loss": mean, "largest": logits.max(), "weight": weight}


def evaluate(module: Any, epoch: int) -> dict[str, float]:
    rows = data()
    torch.rand(3)  # an evaluation that draws numbers must not move the training
    right = (module.logits(rows.item_B).argmax(1) == rows.next_B).double().mean()
    wobble = 1.0 if epoch == BEST_EPOCH else 0.0  # neither the first nor the last
    return {METRIC: float(right) + wobble}


CONFIG = TrainConfig(
    epochs=40,
    batch_size=32,
    lr=0.02,
    weight_decay=0.1,
    warmup_steps=5,
    schedule="cosine",
    grad_clip=1.0,
    patience=9,
    eval_every=2,
    checkpoint_every_s=0,
)


def train(
    state_dir: Path, config: TrainConfig = CONFIG, p_dropout: float = 0.2, **changes: Any
) -> tuple[Toy, FitResult]:
    module = Toy(p_dropout)
    arguments: dict[str, Any] = {
        "batches": batches,
        "num_batches": NUM_BATCHES,
        "loss": loss,
        "evaluate": evaluate,
    }
    return module, fit(module, config=config, state_dir=state_dir, **(arguments | changes))


def train_with_kills(state_dir: Path, num_kills: int, seed: int) -> None:
    """Train in child processes and kill each after some steps and a bit, then let one finish.

    The bit falls anywhere in a step or in the write of its state. The parent has imported everything, so that
    the children spend their short lives on training.
    """
    chosen = random.Random(seed)
    for attempt in range(num_kills):
        target = _newest(state_dir) + chosen.randint(1, 18)
        child = _start(state_dir, attempt)
        while _newest(state_dir) < target and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(chosen.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"start {attempt} ended by itself with status {status}")
        print("killed after step", _newest(state_dir), flush=True)
    _, status = os.waitpid(_start(state_dir, num_kills), 0)
    if status != 0:
        sys.exit(f"the last start failed with status {status}")


def _newest(state_dir: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in state_dir.glob("step-*")), default=0)


def _start(state_dir: Path, attempt: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(state_dir, batches=stream if attempt % 2 else batches)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def main() -> None:
    command, state_dir, *rest = sys.argv[1:]
    state_dir = state_dir.format(rank=os.environ.get("RANK"))
    if command == "kills":
        import lightning.fabric  # noqa: F401  the children must not spend their short lives on it

        train_with_kills(Path(state_dir), int(rest[0]), int(rest[1]))
    else:
        names = dict(pair.split("=") for pair in rest)
        p_dropout = float(names.pop("p_dropout", "0.2"))
        stop = int(names.pop("stop", "-1"))

        def stopped(module: Any, batch: ToyBatch) -> dict[str, Tensor]:
            if module.num_calls == stop:
                raise KeyboardInterrupt
            return loss(module, batch)

        config = with_overrides(CONFIG, [f"{k}={v}" for k, v in names.items()])
        train(Path(state_dir), config, p_dropout, loss=stopped)


if __name__ == "__main__":
    main()
