"""MaRI (arXiv 2602.23105): turn a ranking model into its re-parameterised twin.

The model is exported, its graph swept once on example inputs to cut the weights, and the sweep exported in
its turn: what is left are two plain graphs, for one request and for several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from feedworks.errors import ModelError
from feedworks.mari import rules as _rules  # noqa: F401 - fills the tables of the sweep
from feedworks.mari.graphs import rename, simplify, without_notes
from feedworks.mari.programs import export_rows, named_sides, quiet, require_plain, weights_of
from feedworks.mari.sweep import Block, Options, Refusal, Site, Sweep
from feedworks.mari.twin import Piece, Twin


@dataclass(frozen=True)
class Report:
    """What the conversion did.

    Attributes:
        sites: products that cost less than in the model, in the order of its graph.
        refusals: products over user and candidates together that stay whole, and why.
    """

    sites: tuple[Site, ...]
    refusals: tuple[Refusal, ...] = ()


class Conversion(NamedTuple):
    """A twin and the report on it."""

    twin: Twin
    report: Report


def reparameterise(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any],
    sides: Mapping[str, str] | Sequence[str],
    *,
    layout: Literal["neat", "keep"] = "neat",
    cut: bool = True,
    pad_to: int = 1,
    kernels: bool = True,
) -> Conversion:
    """Find where user and candidate meet in a product, and cut its weights by side.

    Args:
        model: in eval mode; scores B rows, each with its user's inputs. Or its exported program. Where a
            row's score depends on other rows, as in a softmax over candidates, the twin too takes all rows
            that it is given together, of whatever request: give such a one a request at a time.
        example_inputs: arguments of its forward, at least 2 rows, the same user in all.
        sides: `user`, `item`, `cross` or `const` for every tensor among them, by name or in their order.
        layout: `neat` gathers the columns of each side into one product; `keep` leaves them as they lie.
        cut: False leaves all products whole; only what depends on the user alone runs once per request.
        pad_to: fill the widths of products with zeros to a multiple of this, for tensor cores.
        kernels: score with this house's kernels; False keeps to PyTorch's own operations.

    Raises:
        ModelError: the model is in training mode or cannot be exported, a side is missing or unknown, or the
            example is not of one user.
    """
    if isinstance(model, ExportedProgram):
        named = named_sides(model.graph_signature.user_inputs, sides)
        with quiet():
            program = without_notes(model.run_decompositions({}))
        require_plain(program)
        rename(program, list(named))
    else:
        program, named = export_rows(model, example_inputs, sides)
    leaves = pytree.tree_leaves(tuple(example_inputs))
    _require_one_user(leaves, named)
    planner = _Planner(program, named, Options(cut=cut, layout=layout, pad_to=pad_to))
    planner.plan([x[:1] if side == "user" else x for x, side in zip(leaves, named.values(), strict=True)])
    one, many = _one_request(planner, leaves, named), _many_requests(planner, leaves, named)
    origin, kept = planner.origin({*_buffers(one), *_buffers(many)})
    report = Report(tuple(planner.sites), tuple(planner.refusals))
    return Conversion(Twin(one, many, named, origin, kept, kernels=kernels), report)


def _require_one_user(leaves: Sequence[Tensor], sides: Mapping[str, str]) -> None:
    """A user's input that changes from row to row is a candidate's, or the example holds several users."""
    for leaf, (name, side) in zip(leaves, sides.items(), strict=True):
        if side == "user" and not torch.equal(leaf, leaf[:1].expand_as(leaf)):
            raise ModelError(
                f"input {name} is said to be the user's, but its rows in the example differ; give rows of "
                "one user, or another side"
            )


class _Planner(nn.Module):
    """The sweep as a module; a first run cuts the weights, later ones can be exported."""

    def __init__(self, program: ExportedProgram, sides: Mapping[str, str], options: Options) -> None:
        super().__init__()
        self._program, self._sides, self._options = program, dict(sides), options
        self._planned = False
        self.sites: list[Site] = []
        self.refusals: list[Refusal] = []
        self.blocks: dict[str, Sequence[Block]] = {}
        self._constants = weights_of(program)
        self._own = {id(tensor): name for name, tensor in self._constants.items()}
        for name, tensor in self._constants.items():
            self.register_buffer(f"model_{name}", tensor)

    def forward(self, *inputs: Tensor, request_B: Tensor | None = None) -> Any:
        constants = {name: self.get_buffer(f"model_{name}") for name in self._constants}
        sweep = Sweep(
            self._program, constants, self._sides, self._weight, self._site, self._options, self._refuse
        )
        outputs = sweep.run(inputs, request_B)
        return pytree.tree_unflatten(outputs, self._program.call_spec.out_spec)

    def plan(self, inputs: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self(*inputs)
        self._planned = True

    def _weight(self, name: str, make: Callable[[], Tensor], blocks: Sequence[Block] = ()) -> Tensor:
        if not self._planned:
            self.register_buffer(f"cut_{name}", make().detach())
            self.blocks[f"cut_{name}"] = blocks
        return self.get_buffer(f"cut_{name}")

    def _site(self, site: Site) -> None:
        if not self._planned:
            self.sites.append(site)

    def _refuse(self, refusal: Refusal) -> None:
        if not self._planned:
            self.refusals.append(refusal)

    def origin(self, used: set[str]) -> tuple[dict[str, list[Piece]], dict[str, Tensor]]:
        """Where each of the model's weights stands in the buffers that the twin uses, or else the weight."""
        pieces: dict[str, list[Piece]] = {}
        for buffer in sorted(used & set(self.blocks)):
            for block in self.blocks[buffer]:
                rows = block.weight_ND.shape[0]
                piece = Piece(buffer, block.start, block.stop, rows, block.row, block.column)
                pieces.setdefault(self._own.get(id(block.weight_ND), ""), []).append(piece)
        found: dict[str, list[Piece]] = {}
        kept: dict[str, Tensor] = {}
        for spec in self._program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                continue
            placeholder, name = spec.arg.name, str(spec.target)
            covering = _covering(pieces.get(placeholder, []), self._constants[placeholder])
            if f"model_{placeholder}" in used:
                found[name] = [Piece(f"model_{placeholder}", 0, -1, 0, 0, 0)]
            elif covering:
                found[name] = covering
            else:
                kept[name] = self._constants[placeholder]
        return found, kept


def _covering(pieces: list[Piece], weight: Tensor) -> list[Piece]:
    """Pieces that together are every column of the weight once, or none."""
    chosen, at = [], 0
    by_start = {piece.start: piece for piece in pieces}
    while at in by_start:
        chosen.append(by_start[at])
        at = by_start[at].stop
    return chosen if weight.ndim == 2 and at == weight.shape[1] else []


class _Many(nn.Module):
    def __init__(self, planner: _Planner) -> None:
        super().__init__()
        self.planner = planner

    def forward(self, request_B: Tensor, *inputs: Tensor) -> Any:
        return self.planner(*inputs, request_B=request_B)


def _one_request(planner: _Planner, leaves: Sequence[Tensor], sides: Mapping[str, str]) -> ExportedProgram:
    rows = Dim("rows")
    inputs = tuple(x[:1] if side == "user" else x for x, side in zip(leaves, sides.values(), strict=True))
    shapes = tuple({0: rows} if side in ("item", "cross") else None for side in sides.values())
    return _exported(planner, inputs, (shapes,), list(sides))


def _many_requests(planner: _Planner, leaves: Sequence[Tensor], sides: Mapping[str, str]) -> ExportedProgram:
    rows, requests = Dim("rows"), Dim("requests")
    request_B = torch.tensor([0, 2, 1, 1, 0])
    # Rows and requests of other numbers than any width is likely to have.
    inputs = tuple(
        x if side == "const" else x[torch.arange(3 if side == "user" else 5) % x.shape[0]]
        for x, side in zip(leaves, sides.values(), strict=True)
    )
    of_side = {"user": {0: requests}, "item": {0: rows}, "cross": {0: rows}, "const": None}
    shapes = ({0: rows}, tuple(of_side[side] for side in sides.values()))
    return _exported(_Many(planner), (request_B, *inputs), shapes, ["request", *sides])


def _exported(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, names: Sequence[str]
) -> ExportedProgram:
    with torch.no_grad(), quiet():
        program = export(module.eval(), inputs, dynamic_shapes=shapes)
    return simplify(program, names)


def _buffers(program: ExportedProgram) -> set[str]:
    """Names of the weights that a program reads."""
    return {
        str(spec.target).rpartition(".")[2] for spec in program.graph_signature.input_specs if spec.target
    }
