"""MaRI (arXiv 2602.23105): a ranking model from outside, by the name of what returns it.

Its code runs here, once; every later step reads the exported program.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from feedworks.errors import ModelError
from feedworks.mari.programs import weights_of
from feedworks.mari.samples import draw, tiled
from feedworks.mari.schema import RankerSchema


def load_outside(reference: str) -> nn.Module:
    """Import and call `module:callable` or `file.py:callable`; the model comes back in eval mode on the CPU.

    A module is looked for in the current folder too.

    Raises:
        ModelError: there is no such module or callable, it fails, or returns no torch module.
    """
    place, _, name = reference.rpartition(":")
    module = _module(place, reference)
    build = getattr(module, name, None)
    if not callable(build):
        raise ModelError(f"model {reference}: {place} has no callable {name!r}")
    model = _told(reference, "failed", build)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {reference}: it returned a {type(model).__name__}, expected a torch module")
    return model.eval().cpu()


def require_names(model: nn.Module, schema: RankerSchema, reference: str) -> None:
    """Check that the schema names the arguments of a model's forward, in order; `*args` take any names.

    Raises:
        ModelError: it does not: an input would be taken for another one.
    """
    taken = inspect.signature(model.forward).parameters.values()
    if any(each.kind == inspect.Parameter.VAR_POSITIONAL for each in taken):
        return
    named = list(schema.sides)
    needed = [each.name for each in taken if each.name in named or each.default is inspect.Parameter.empty]
    if needed != named:
        takes, names = ", ".join(needed), ", ".join(named)
        raise ModelError(
            f"model {reference}: its forward takes {takes}; the sides file names {names}; wrap the model if "
            "it does not take one tensor per input"
        )


def require_scores(program: ExportedProgram, schema: RankerSchema, reference: str) -> None:
    """Check that a model gives a finite number for each candidate and output, and the same when asked again.

    Outputs that it names have to be the schema's.

    Raises:
        ModelError: it does not.
    """
    names = _output_names(program)
    if names and names != list(schema.outputs):
        raise ModelError(
            f"model {reference}: it returns {', '.join(names)}; the sides file names its outputs "
            f"{', '.join(schema.outputs)}; give the same in the same order"
        )
    inputs = tiled(schema, draw(schema, [3, 1]))
    scores_BT, again_BT = (_scores(program, inputs) for _ in range(2))
    if scores_BT.shape != (4, len(schema.outputs)):
        raise ModelError(
            f"model {reference}: it returns {tuple(scores_BT.shape)} for 4 candidates; the sides file names "
            f"{len(schema.outputs)} outputs ({', '.join(schema.outputs)})"
        )
    if not torch.isfinite(scores_BT).all():
        raise ModelError(f"model {reference}: its scores are not finite; load its weights in the callable")
    if not torch.equal(scores_BT, again_BT):
        raise ModelError(
            f"model {reference}: it scores the same candidates in two ways; take out what is random"
        )


def _output_names(program: ExportedProgram) -> list[str]:
    """Keys of a dict that a model returns; empty where it returns tensors without names."""
    tree = program.call_spec.out_spec
    outputs = pytree.tree_unflatten([0] * tree.num_leaves, tree)
    return [str(name) for name in outputs] if isinstance(outputs, dict) else []


def _scores(program: ExportedProgram, inputs: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        outputs = program.graph_module.forward(*weights_of(program).values(), *inputs)
    columns = [x if x.ndim > 1 else x.reshape(-1, 1) for x in pytree.tree_leaves(outputs)]
    return torch.cat(columns, dim=1) if len({len(x) for x in columns}) == 1 else columns[0]


def source_file(reference: str) -> Path | None:
    """The file that a reference names, where it can be found without running it."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    with _current_folder():
        try:
            spec = importlib.util.find_spec(place)
        except (ImportError, ValueError, AttributeError):
            return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _module(place: str, reference: str) -> ModuleType:
    if not place.endswith(".py"):
        with _current_folder():
            module: ModuleType = _told(reference, "cannot be imported", importlib.import_module, place)
            return module
    path = Path(place)
    if not path.is_file():
        raise ModelError(f"model {reference}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"feedworks_outside_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles of the module look it up
    with _current_folder(path.parent):
        _told(reference, "cannot be imported", spec.loader.exec_module, module)
    return module


def _told(reference: str, what: str, call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        text = " ".join(str(error).split())
        raise ModelError(f"model {reference}: it {what} ({type(error).__name__}: {text})") from error


@contextmanager
def _current_folder(folder: Path | None = None) -> Iterator[None]:
    """Look for modules in a folder first."""
    added = str((folder or Path.cwd()).resolve())
    sys.path.insert(0, added)
    try:
        yield
    finally:
        sys.path.remove(added)
