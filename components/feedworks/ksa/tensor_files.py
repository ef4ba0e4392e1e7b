"""The safetensors files of one model folder: one file, or several that an index names. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feedworks.errors import DataError, ModelError
from feedworks.storage import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorFiles:
    """Reads named tensors of a folder, one at a time. A context manager: it holds the files open.

    Raises:
        ModelError: there is no file, or one is missing, truncated or lacks what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._file: dict[str, Any] = {}
        try:
            for path, names in _shards(folder).items():
                handle = self._open(path)
                found = set(handle.keys())
                if lost := sorted((names or found) - found):
                    raise ModelError(f"{path} lacks the tensor {lost[0]}, which {INDEX} says it has")
                self._file |= dict.fromkeys(found if names is None else names, handle)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except FileNotFoundError:
            raise ModelError(f"{path} is missing: copy the whole model folder") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read ({error}): copy it again") from None

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def check(self, shapes: Mapping[str, tuple[int, ...]], spare: Collection[str] = ()) -> None:
        """Refuse a folder that holds other tensors than a model has; no number is read.

        Args:
            shapes: of the model's tensors.
            spare: further names that may be there.

        Raises:
            ModelError: a tensor is missing, unknown, or of another shape or kind.
        """
        found = set(self._file)
        for what, names in (
            ("lacks the tensor", set(shapes) - found),
            ("has a tensor that the model of its config.json has not:", found - set(shapes) - set(spare)),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ModelError(f"{self.folder} {what} {min(names)}{more}")
        for name, expected in shapes.items():
            part = self._file[name].get_slice(name)
            shape, kind = tuple(part.get_shape()), str(part.get_dtype())
            if shape != expected:
                raise ModelError(
                    f"{self.folder}: {name} has the shape {shape}, expected {expected} by config.json"
                )
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise ModelError(f"{self.folder}: {name} holds {kind}, expected floating-point numbers")

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own, so that the file may be replaced while it is in use.

        Raises:
            ModelError: it holds NaN or infinite numbers.
        """
        tensor: Tensor = self._file[name].get_tensor(name).clone()
        # A sum is not finite if a number is not; only a sum that overflows needs the closer look.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor).all():
            raise ModelError(f"{self.folder}: {name} holds NaN or infinite numbers: its training diverged")
        return tensor


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Return the files, and which tensors of each count; None for all."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"{folder} has neither {WEIGHTS} nor {INDEX}: only safetensors are read")
        return {folder / WEIGHTS: None}
    try:
        places = read_json(folder / INDEX)["weight_map"]
        pairs = [(str(name), str(file)) for name, file in places.items()]
    except (DataError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{folder / INDEX} is damaged: expected a JSON object with a weight_map") from None
    shards: dict[Path, set[str] | None] = {}
    for name, file in pairs:
        if Path(file).name != file:
            raise ModelError(f"{folder / INDEX} names the file {file!r}: expected one in the same folder")
        names = shards.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    return shards
