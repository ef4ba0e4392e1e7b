"""MaRI (arXiv 2602.23105): ranking models as exported programs, in memory and as .pt2 files.

A .pt2 file is a zip archive: a graph as JSON and raw tensors. The format would allow pickled objects too;
they are neither written nor read here.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from feedworks.errors import ModelError
from feedworks.mari.graphs import without_notes

SIDES = ("user", "item", "cross", "const")
# A size such as `2*Symbol('s17', positive=True, integer=True) + 1`; the reader of the format evaluates it.
_SIZE = re.compile(r"(?:'[su][0-9]+'|[A-Za-z][A-Za-z0-9]*|[0-9]+|[ +\-*/(),<>=])*")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch says of its own tree specifications and archives."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def export_rows(
    model: nn.Module, inputs: Sequence[Any], sides: Mapping[str, str] | Sequence[str]
) -> tuple[ExportedProgram, dict[str, str]]:
    """Export a model that scores any number of rows, in functional ATen form.

    Args:
        model: in eval mode.
        inputs: arguments of its forward, at least 2 rows each; tensors, or lists and dicts of them.
        sides: of every tensor: by argument name, by key inside a dict, or in order.

    Returns:
        The program, and the side of every tensor by name in the program's order.

    Raises:
        ModelError: it is in training mode, or cannot be exported, or a side is missing or unknown.
    """
    if model.training:
        raise ModelError("the model is in training mode; call eval() on it first")
    named = named_sides(input_names(model, inputs), sides)
    leaves, tree = pytree.tree_flatten(tuple(inputs))
    _require_rows(leaves, named)
    rows = Dim("rows")
    # A user input of one row already is one for all candidates; the model repeats it itself.
    shapes = [
        None if side == "const" or (side == "user" and leaf.shape[0] == 1) else {0: rows}
        for leaf, side in zip(leaves, named.values(), strict=True)
    ]
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    dynamic = pytree.tree_unflatten(shapes, tree)
    with quiet():
        try:
            program = export(
                model,
                tuple(inputs),
                dynamic_shapes=(dynamic,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else dynamic,
            )
            program = without_notes(program.run_decompositions({}))
        except Exception as error:  # torch.export raises whatever the model's own code meets
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"the model cannot be exported with any number of rows: {first[0]}; see torch.export.export"
            ) from error
    require_plain(program)
    return program, named


def require_plain(program: ExportedProgram) -> None:
    """Check that a functional program only computes its outputs, by operations without branches.

    Raises:
        ModelError: it writes to a buffer or an input, or holds a branch or a loop.
    """
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise ModelError(
            f"the model writes to {', '.join(written)} when it scores; it has to leave its buffers and "
            "inputs as they are"
        )
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
            raise ModelError(
                f"the model's graph has {node.target}, which holds graphs of its own; "
                "write it with operations on whole tensors, such as torch.where"
            )


def input_names(model: nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Name of every tensor among the arguments: the argument's, or the key in a dict."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    starred = [p.name for p in parameters if p.kind == inspect.Parameter.VAR_POSITIONAL]
    own = [p.name for p in parameters if p.kind != inspect.Parameter.VAR_POSITIONAL]
    own += [f"{starred[0]}_{number}" for number in range(len(inputs))] if starred else []
    names = []
    for name, value in zip(own, inputs, strict=False):
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            last = getattr(path[-1], "key", getattr(path[-1], "idx", "")) if path else ""
            names.append(str(last) if isinstance(last, str) and last else "_".join([name, *_steps(path)]))
    return names


def _steps(path: Sequence[Any]) -> list[str]:
    return [str(getattr(step, "key", getattr(step, "idx", ""))) for step in path]


def named_sides(names: Sequence[str], sides: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Side of every input by name, in the order of the names.

    Raises:
        ModelError: one is missing, too many, or unknown.
    """
    if not isinstance(sides, Mapping):
        if len(sides) != len(names):
            raise ModelError(
                f"{len(sides)} sides for {len(names)} inputs ({', '.join(names)}); give one each"
            )
        sides = dict(zip(names, sides, strict=True))
    missing, extra = [n for n in names if n not in sides], [n for n in sides if n not in names]
    unknown = {name: side for name, side in sides.items() if side not in SIDES}
    if missing or extra or unknown:
        said = f"missing {missing}, not an input {extra}, unknown {unknown}"
        raise ModelError(f"sides: expected one of {', '.join(SIDES)} for each of {', '.join(names)}; {said}")
    return {name: sides[name] for name in names}


def _require_rows(leaves: Sequence[Any], sides: Mapping[str, str]) -> None:
    if not any(side in ("item", "cross") for side in sides.values()):
        raise ModelError("no input is of the item or cross side; there is nothing to rank")
    for leaf, (name, side) in zip(leaves, sides.items(), strict=True):
        if not isinstance(leaf, Tensor):
            raise ModelError(
                f"input {name} is a {type(leaf).__name__}; give tensors, or dicts and lists of them"
            )
        if side != "const" and (leaf.ndim == 0 or leaf.shape[0] < 2 - (side == "user")):
            raise ModelError(
                f"input {name} has shape {tuple(leaf.shape)}; give an example of at least 2 rows"
            )


def weights_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constant tensors by placeholder name."""
    state = {**program.state_dict, **program.constants}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            found[spec.arg.name] = state[spec.target].detach()
    return found


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a .pt2 file.

    Raises:
        ModelError: a weight is of a kind that the format can only pickle.
    """
    program.example_inputs = None
    _own_storage(program)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        whole, plain = Path(scratch) / "whole.pt2", Path(scratch) / "plain.pt2"
        with quiet():
            torch.export.save(program, whole)
        _without_samples(whole, plain)
        refuse_code(plain)
        plain.replace(path)


def load_program(path: Path) -> ExportedProgram:
    """Read a .pt2 file that `save_program` wrote.

    Raises:
        ModelError: it is missing or damaged, or holds what could run code.
    """
    refuse_code(path)
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # whatever the reader meets in a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {path} cannot be read ({reason}); make it again") from None


def _own_storage(program: ExportedProgram) -> None:
    """A tensor that is a part of another one would be written with all of it, and torch warns of it."""
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > tensor.nbytes:
                copy = tensor.detach().clone()
                is_weight = isinstance(tensor, nn.Parameter)
                tensors[name] = nn.Parameter(copy, tensor.requires_grad) if is_weight else copy


def _without_samples(source: Path, target: Path) -> None:
    """Copy an archive with its sample inputs, which are pickled, left empty."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = b"" if "/sample_inputs/" in entry.filename else old.read(entry)
            new.writestr(zipfile.ZipInfo(entry.filename, (1980, 1, 1, 0, 0, 0)), content)


def refuse_code(path: Path) -> None:
    """Check an archive for what its reader would run: pickled objects, and expressions that are no sizes.

    Raises:
        ModelError: it is missing or damaged, or holds such a thing.
    """
    if not path.is_file():
        raise ModelError(f"model {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                content = archive.read(entry)
                if _runs_code(entry.filename, content):
                    raise ModelError(
                        f"model {path}: {entry.filename} could run code; write it with feedworks"
                    )
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(f"model {path} cannot be read ({error}); make it again") from None


def _runs_code(name: str, content: bytes) -> bool:
    if "/sample_inputs/" in name:
        return bool(content)
    if name.endswith(("weights_config.json", "constants_config.json")):
        entries = json.loads(content)["config"].values()
        return any(entry["use_pickle"] for entry in entries)
    if "/models/" in name:
        return any(not _SIZE.fullmatch(text) for text in _expressions(json.loads(content)))
    return False


def _expressions(tree: Any) -> Iterator[str]:
    """Every `expr_str` of a graph's JSON."""
    if isinstance(tree, dict):
        if isinstance(tree.get("expr_str"), str):
            yield tree["expr_str"]
        for part in tree.values():
            yield from _expressions(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _expressions(part)
