"""The training state on disk: the last two whole generations of it, then the finished result.

    STATE_DIR/run.json          what is trained; another run is refused
    STATE_DIR/step-<n>/         state.safetensors and state.json (position, history, checksum)
    STATE_DIR/final/            weights.safetensors and result.json; the generations are then removed

A generation appears by one rename, so a kill at any time leaves the one before. A damaged one is passed over:
to go on from an older step gives the same weights, only later.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.progress import say
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.checkpoint import read_tensors, save_tensors

_KEPT = 2
_LOCK_WAIT_S = 10.0


@dataclass(kw_only=True)
class Position:
    """Where a run is; with the tensors of the state it decides everything that follows.

    Attributes:
        epoch: epochs done.
        batch: batches done of the next epoch.
        step: optimiser steps done.
        names: terms of the loss, in the order of their sums.
        history: one row per epoch done.
        best_epoch: the epoch of the best monitored metric, -1 before the first.
        best_metric: its value.
        seconds: time spent so far, over all starts.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    names: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_metric: float | None = None
    seconds: float = 0.0


class StateStore:
    """The files of one training run under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, facts: Mapping[str, Any]) -> None:
        """Refuse a folder that holds a run with other facts.

        Raises:
            ConfigError: names what differs.
        """
        path = self.folder / "run.json"
        if not path.exists():
            return
        held = read_json(path)
        differs = [
            f"{key}={held.get(key)!r} (now {facts.get(key)!r})"
            for key in sorted({*held, *facts})
            if held.get(key) != facts.get(key)
        ]
        if differs:
            shown = ", ".join(differs[:5])
            raise ConfigError(
                f"{self.folder} holds a training run with {shown}; remove the folder or use another"
            )

    def record(self, facts: Mapping[str, Any]) -> None:
        """Note what is trained here, for `claim`."""
        write_json(self.folder / "run.json", dict(facts))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out while the block runs; a kill gives the lock back.

        Raises:
            ConfigError: another process trains here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            _lock(descriptor, self.folder)
            yield
        finally:
            os.close(descriptor)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Write a generation and drop those before the last two.

        Raises:
            ModelError: the folder cannot be written; earlier generations are whole.
        """
        try:
            # Not flushed to the device: after a power cut the checksum finds the damage.
            with atomic_folder(self.folder / f"step-{position.step:010d}", durable=False) as folder:
                checksum = save_tensors(folder / "state.safetensors", tensors)
                write_json(folder / "state.json", {"sha256": checksum, "position": asdict(position)})
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"cannot write the training state to {self.folder} ({error}); free space there and start "
                f"again: it goes on from the state before step {position.step}"
            ) from None
        for old in self._generations()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> tuple[Position, dict[str, Tensor]] | None:
        """Return the newest whole generation; None where there is none.

        Raises:
            ModelError: there are generations and all are damaged.
        """
        found = self._generations()
        for folder in found:
            try:
                facts = read_json(folder / "state.json")
                tensors = read_tensors(folder / "state.safetensors", checksum=facts["sha256"])
                return Position(**facts["position"]), tensors
            except (ModelError, DataError, KeyError, TypeError) as error:
                say(f"passing over a damaged training state: {error}")
        if found:
            raise ModelError(
                f"every training state in {self.folder} is damaged; remove the folder to train again"
            )
        return None

    def finish(self, position: Position, weights: Mapping[str, Tensor]) -> None:
        """Write the result and remove the generations.

        Raises:
            ModelError: the folder cannot be written; the generations are whole.
        """
        try:
            with atomic_folder(self.folder / "final") as folder:
                checksum = save_tensors(folder / "weights.safetensors", weights)
                write_json(folder / "result.json", {"sha256": checksum, "position": asdict(position)})
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"cannot write the trained weights to {self.folder} ({error}); "
                "free space there and start again"
            ) from None
        for old in self._generations():
            shutil.rmtree(old, ignore_errors=True)

    def finished(self) -> tuple[Position, dict[str, Tensor]] | None:
        """Return the result, None while there is none.

        Raises:
            ModelError: the result is damaged.
        """
        folder = self.folder / "final"
        if not folder.is_dir():
            return None
        try:
            facts = read_json(folder / "result.json")
            weights = read_tensors(folder / "weights.safetensors", checksum=facts["sha256"])
            return Position(**facts["position"]), weights
        except (ModelError, DataError, KeyError, TypeError) as error:
            raise ModelError(f"{error}; remove {self.folder} to train again") from None

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _lock(descriptor: int, folder: Path) -> None:
    # The children of a run killed a moment ago may hold the lock until they notice.
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                raise ConfigError(
                    f"another process trains in {folder}; stop it or use another folder"
                ) from None
            time.sleep(0.1)
