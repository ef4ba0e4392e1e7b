"""The training state on disk: the last two whole generations of it, then the finished result.

    STATE_DIR/run.json          what is trained; another run is refused
    STATE_DIR/step-<n>/         tensors.safetensors and state.json (position, history, checksum)
    STATE_DIR/final/            the same two files with the trained weights; the generations are then removed

A generation appears by one rename, so a kill at any time leaves the one before. A damaged one is passed over:
to go on from an older step gives the same weights, only later.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.progress import say
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.checkpoint import read_tensors, write_tensors

_KEPT = 2
_TENSORS = "tensors.safetensors"
_FACTS = "state.json"
_LOCK_WAIT_S = 10.0
STATE_ROOT = "FEEDWORKS_STATE"  # an environment variable


def state_of(out_dir: Path) -> Path:
    """Return where a step that writes `out_dir` keeps its state: beside it, as `<out_dir>.state`.

    Where the environment variable FEEDWORKS_STATE names a folder on a volume that is there and writable, the
    state lies in it, under the whole path of the result: a pod that takes the place of a killed one has the
    same paths, but nothing else of the first.
    """
    beside = out_dir.with_name(out_dir.name + ".state")
    root = Path(os.environ.get(STATE_ROOT, ""))
    volume = root if root.is_dir() else root.parent
    if not root.is_absolute() or not os.access(volume, os.W_OK):
        return beside
    return root / beside.absolute().relative_to("/")


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
        # Not flushed to the device: after a power cut the checksum finds the damage.
        self._write(f"step-{position.step:010d}", position, tensors, durable=False)
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
                return _read(folder)
            except ModelError as error:
                say(f"passed over: {error}")
        if found:
            raise ModelError(f"every training state in {self.folder} is damaged; remove it to train again")
        return None

    def finish(self, position: Position, weights: Mapping[str, Tensor]) -> None:
        """Write the result and remove the generations.

        Raises:
            ModelError: the folder cannot be written; the generations are whole.
        """
        self._write("final", position, weights, durable=True)
        # A killed process leaves the folder that it was writing; nobody else writes here while this one runs.
        for old in (*self._generations(), *self.folder.glob(".step-*.tmp-*")):
            shutil.rmtree(old, ignore_errors=True)

    def finished(self) -> tuple[Position, dict[str, Tensor]] | None:
        """Return the result, None while there is none.

        Raises:
            ModelError: the result is damaged.
        """
        folder = self.folder / "final"
        return _read(folder) if folder.is_dir() else None

    def _write(self, name: str, position: Position, tensors: Mapping[str, Tensor], *, durable: bool) -> None:
        try:
            with atomic_folder(self.folder / name, durable=durable) as folder:
                checksum = write_tensors(folder / _TENSORS, tensors)
                facts = {"sha256": checksum, "position": asdict(position)}
                (folder / _FACTS).write_text(json.dumps(facts, allow_nan=False))
        except OSError as error:
            raise ModelError(
                f"cannot write the training state to {self.folder} ({error}); free space there and start "
                f"again: it goes on from the newest state before step {position.step}"
            ) from None

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _read(folder: Path) -> tuple[Position, dict[str, Tensor]]:
    try:
        facts = read_json(folder / _FACTS)
        position = Position(**facts["position"])
        return position, read_tensors(folder / _TENSORS, checksum=facts["sha256"])
    except (DataError, KeyError, TypeError, AttributeError) as error:
        where = f"{folder / _FACTS} is damaged ({error})"
        raise ModelError(f"{where}; remove {folder.parent} to train again") from None


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
