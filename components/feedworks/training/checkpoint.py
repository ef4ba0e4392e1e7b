"""Model folders: `model.safetensors` and a `config.json` that carries its checksum. Nothing is pickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from feedworks.errors import DataError, ModelError
from feedworks.storage import atomic_file, read_json, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_FORMAT = 1


def save_model(
    folder: str | Path, module: nn.Module, config_json: str, extra: Mapping[str, Any] | None = None
) -> None:
    """Write the weights and the config of a model; other files of the folder stay.

    To replace a whole earlier result at once, write into `feedworks.storage.atomic_folder`.

    Args:
        folder: made if need be.
        module: its state_dict is written from any device; tied weights are stored once.
        config_json: what rebuilds the module, see `feedworks.configuration.to_json`.
        extra: further facts, such as metrics, that JSON can hold.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    tensors, tied = split_tied(module.state_dict())
    checksum = save_tensors(target / WEIGHTS, tensors)
    facts = {
        "format": _FORMAT,
        "config": config_json,
        "extra": dict(extra or {}),
        "tied": tied,
        "sha256": checksum,
    }
    write_json(target / CONFIG, facts)


def load_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Return the state_dict that `save_model` wrote, on the CPU, checked against its checksum.

    Raises:
        ModelError: the folder is missing, incomplete or damaged.
    """
    facts = _facts(Path(folder))
    tensors = read_tensors(Path(folder) / WEIGHTS, checksum=facts["sha256"])
    if lost := sorted(set(facts["tied"].values()) - tensors.keys()):
        raise ModelError(
            f"{Path(folder) / CONFIG} names the tensor {lost[0]}, which {WEIGHTS} lacks; make it again"
        )
    return tensors | {name: tensors[kept] for name, kept in facts["tied"].items()}


def load_model(folder: str | Path, module: nn.Module) -> None:
    """Load what `save_model` wrote into a module of the same shape.

    Raises:
        ModelError: the folder is missing or damaged, or holds another kind of model.
    """
    load_state(module, load_tensors(folder), source=Path(folder))


def load_config_json(folder: str | Path) -> str:
    """Return the `config_json` given to `save_model`.

    Raises:
        ModelError: the folder is missing or its config is damaged.
    """
    return str(_facts(Path(folder))["config"])


def load_extra(folder: str | Path) -> dict[str, Any]:
    """Return the `extra` facts given to `save_model`.

    Raises:
        ModelError: the folder is missing or its config is damaged.
    """
    return dict(_facts(Path(folder))["extra"])


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> str:
    """Write named tensors to one safetensors file by one rename and return its sha256.

    Args:
        path: the file to write.
        tensors: any shapes and devices; no two may share memory (see `split_tied`).

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    with atomic_file(path) as temporary:
        return write_tensors(temporary, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Do the same in a folder that appears as a whole anyway, see `feedworks.storage.atomic_folder`."""
    try:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None
    return _sha256(path)


def read_tensors(path: str | Path, *, checksum: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Args:
        path: the file.
        checksum: the sha256 that it must have; None checks the structure only.

    Raises:
        ModelError: the file is missing, truncated or not what was written.
    """
    source = Path(path)
    try:
        # Read into memory, not mapped: the file may be replaced or removed while the tensors are in use.
        content = source.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if checksum not in (None, found):
            wanted = f"sha256 {found[:12]}, expected {str(checksum)[:12]}"
            raise ModelError(f"{source} is damaged ({wanted}); make it again")
        return load(content)
    except FileNotFoundError:
        raise ModelError(f"{source} is missing; run the step that writes it") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{source} cannot be read ({error}); make it again") from None


def split_tied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state_dict into tensors of their own and `{name: the name that holds the same tensor}`."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor
    return kept, tied


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy tensors into a module; names and shapes must be its own.

    Raises:
        ModelError: a name is missing or unknown, or a shape differs.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ModelError(f"{source} holds another model: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, this model has {tuple(own[name].shape)}"
            raise ModelError(f"{source} holds another model: {name} is {shapes}")
    with torch.no_grad():
        module.load_state_dict(dict(tensors))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} is missing; run the step that writes it")
    try:
        facts: dict[str, Any] = read_json(folder / CONFIG)
    except DataError as error:
        raise ModelError(str(error)) from None
    kinds = {"format": int, "config": str, "extra": dict, "tied": dict, "sha256": str}
    whole = isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in kinds.items())
    if not whole or facts["format"] != _FORMAT:
        raise ModelError(
            f"{folder / CONFIG} is not a model config of format {_FORMAT}; make the folder again"
        )
    return facts
