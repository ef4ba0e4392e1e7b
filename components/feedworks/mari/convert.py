"""MaRI (arXiv 2602.23105): turn a ranking model into its re-parameterised twin."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind

from feedworks.errors import ModelError
from feedworks.mari import rules as _rules  # noqa: F401 - fills the tables of the sweep
from feedworks.mari.sweep import Site, Sweep

SIDES = ("user", "item", "cross", "const")


class Reparameterised(nn.Module):
    """The twin: scores B candidates of R requests, with the user's inputs given once per request.

    Args:
        program: the exported model, functional.
        sides: side of every input, in the order of the model's inputs.
    """

    def __init__(self, program: ExportedProgram, sides: Mapping[str, str]) -> None:
        super().__init__()
        self._program = program
        self._sides = dict(sides)
        self._names: dict[str, str] = {}
        self._planned = False
        self.sites: list[Site] = []
        state = {**program.state_dict, **program.constants}
        for spec in program.graph_signature.input_specs:
            if spec.kind != InputKind.USER_INPUT:
                name = spec.arg.name
                self._names[name] = f"model_{name}"
                self.register_buffer(f"model_{name}", state[spec.target].detach())

    def forward(self, *inputs: Tensor, request_B: Tensor | None = None) -> Any:
        """Score.

        Args:
            inputs: as the model's, but those of the user have one row per request.
            request_B: int64, the request of each row; without it there is one request.
        """
        constants = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        sweep = Sweep(self._program, constants, self._sides, self._weight, self._site)
        outputs = sweep.run(inputs, request_B)
        return torch.utils._pytree.tree_unflatten(outputs, self._program.call_spec.out_spec)

    def plan(self, inputs: Sequence[Tensor]) -> None:
        """Run once to cut the weights and find the sites."""
        with torch.no_grad():
            self(*inputs)
        self._planned = True

    def _weight(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if not self._planned:
            self.register_buffer(f"cut_{name}", make().detach())
        return self.get_buffer(f"cut_{name}")

    def _site(self, site: Site) -> None:
        if not self._planned:
            self.sites.append(site)


def reparameterise(
    model: nn.Module, example_inputs: Sequence[Tensor], sides: Mapping[str, str] | Sequence[str]
) -> Reparameterised:
    """Find where user and candidate meet in a product, and cut its weights by side.

    Args:
        model: in eval mode; scores B rows, each with its user's inputs.
        example_inputs: at least 2 rows, the same user in all.
        sides: `user`, `item`, `cross` or `const` for every input, by name or in their order.

    Raises:
        ModelError: the model is in training mode or cannot be exported, or a side is unknown.
    """
    if model.training:
        raise ModelError("the model is in training mode; call eval() on it first")
    named = _sides(model, example_inputs, sides)
    rows = Dim("rows")
    shapes = tuple({0: rows} if side != "const" else None for side in named.values())
    with warnings.catch_warnings():
        # torch copies its own tree specifications, which it warns of.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.* is deprecated", FutureWarning)
        program = export(model, tuple(example_inputs), dynamic_shapes=_shapes(model, shapes))
        program = program.run_decompositions({})
    twin = Reparameterised(program, named)
    at_requests = [
        x[:1] if side == "user" else x for x, side in zip(example_inputs, named.values(), strict=True)
    ]
    twin.plan(at_requests)
    return twin


def _shapes(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    return (shapes,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _sides(
    model: nn.Module, inputs: Sequence[Tensor], sides: Mapping[str, str] | Sequence[str]
) -> dict[str, str]:
    names = list(inspect.signature(model.forward).parameters)[: len(inputs)]
    named = dict(sides) if isinstance(sides, Mapping) else dict(zip(names, sides, strict=True))
    unknown = {name: side for name, side in named.items() if side not in SIDES}
    if unknown or list(named) != names:
        raise ModelError(f"sides {named}: expected one of {', '.join(SIDES)} for each of {', '.join(names)}")
    return named
