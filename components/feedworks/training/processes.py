"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig
from feedworks.training.sharding import shard


def is_first_process() -> bool:
    """Whether this process writes results: all processes of torchrun end with the same ones."""
    return os.environ.get("RANK", "0") == "0"


def is_grouped() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(config: TrainConfig) -> Any:
    """Return a launched `lightning.fabric.Fabric`; DDP or FSDP where torchrun started several processes.

    Raises:
        ConfigError: the settings ask for a device or a number of processes that is not there.
    """
    from lightning.fabric import Fabric  # 3 s to import; not needed where a run is finished

    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if config.devices not in ("auto", str(world)):
        raise ConfigError(
            f"devices={config.devices}, but {world} process(es) run; "
            f"start with torchrun --nproc-per-node {config.devices}"
        )
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "accelerator=cuda, but torch sees no CUDA device; use accelerator=cpu or a CUDA build"
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy=_strategy(config, world) if world > 1 else "auto",
        # Fabric's own bf16-true rounds buffers, too: a table of rotary angles would be off at long range.
        precision="32-true" if config.precision == "bf16-true" else config.precision,
    )
    fabric.launch()
    return fabric


def require_same(fabric: Any, seen: object, folder: Path) -> None:
    """Go on when all processes have read the same of a folder; the first one may then change it.

    Raises:
        ConfigError: this process sees something else than the first one.
    """
    if fabric.broadcast(seen) != seen:
        raise ConfigError(f"processes see different states in {folder}; use a folder that all share")
    fabric.barrier()


def _strategy(config: TrainConfig, world: int) -> Any:
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    if config.strategy == "ddp":
        return DDPStrategy(find_unused_parameters=True)
    # Fabric's FSDPStrategy wraps the older FSDP, which wants a GPU; this one takes PyTorch's fully_shard.
    return ModelParallelStrategy(
        lambda module, mesh: shard(module, mesh["data_parallel"]),
        data_parallel_size=world,
        tensor_parallel_size=1,
    )


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take denormal numbers as zero inside the block, and as before after it.

    Adam's moments of embedding rows that get no gradient decay through the denormal range, where a CPU is
    slower: 10 ms against 6 ms for one step of fused AdamW over denormal moments.
    """
    before = torch.tensor(1e-40).mul(1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Silence the one warning that DDP gives for a setting chosen with reason."""
    # DDP must be told that a loss may leave parameters out, and then warns when none is left out.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        yield
