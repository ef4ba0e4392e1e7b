"""MaRI (arXiv 2602.23105): run a model's graph on values that keep the user apart.

The graph comes from torch.export, in functional ATen form. Every operation either has a rule that keeps the
parts of a value apart, or, if it looks at one row at a time, runs on the user's R rows, or else gets the
whole tensors that the model itself would have had. So a rule that is missing costs speed, never exactness.

Shape legend: B rows, R requests, D columns, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from feedworks.errors import ModelError
from feedworks.mari import reasons, values
from feedworks.mari.calls import Call, leaves_of, mapped, raw, sizes
from feedworks.mari.found import Refusal, Site
from feedworks.mari.values import Bare, Blocks, Count, Folded, Form, Normed, Outer, Row, Tall, User, Value

__all__ = ["Block", "Call", "Count", "Options", "Refusal", "Row", "Site", "Sweep", "Weights", "rule", "sizes"]

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)
Handler = Callable[["Sweep", Call, list[Any], Mapping[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Block:
    """Where a model's own weight stands, unchanged, inside a cut one.

    `cut[row : row + N, column : column + stop - start] = weight_ND[:, start : stop]`.
    """

    weight_ND: Tensor
    start: int
    stop: int
    row: int
    column: int


class Weights(Protocol):
    """Keeps a weight that was computed from the model's own under a name, and what of them it holds."""

    def __call__(self, name: str, make: Callable[[], Tensor], blocks: Sequence[Block] = ()) -> Tensor:
        """Keep it in the planning run; find it by its name in later ones."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to cut.

    Attributes:
        cut: False leaves every product whole, so that only what depends on the user alone runs once per
            request, and is repeated where it meets a candidate (user-side one-shot inference).
        layout: `neat` has one product per side; `keep` one for each block of columns as they lie.
        pad_to: widths of a product's operands are filled with zeros to a multiple of this.
    """

    cut: bool = True
    layout: Literal["neat", "keep"] = "neat"
    pad_to: int = 1

    def __post_init__(self) -> None:
        if self.layout not in ("neat", "keep") or self.pad_to < 1:
            raise ModelError(f"{self}: expected layout neat or keep, and pad_to of 1 or more")


Rule = Callable[["Sweep", Call, list[Any]], Any]
RULES: dict[Any, Rule] = {}
# Rules that also take the keyword arguments of the node.
OPTIONED: set[Any] = set()
ROW_BY_ROW: dict[Any, Callable[[Call, int, list[User]], bool]] = {}
# What to do with a value that is another one in another shape.
WRAPPED: dict[type, Handler] = {}


def rule(*targets: Any, options: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
            if options:
                OPTIONED.add(target)
        return function

    return register


def wrapped(kind: type) -> Callable[[Handler], Handler]:
    """Register what to do with operations on a wrapped value."""

    def register(function: Handler) -> Handler:
        WRAPPED[kind] = function
        return function

    return register


def bare_row(node: Call, arguments: Sequence[Any]) -> Bare | None:
    """The only row of a user's tensor that the model itself keeps at one row, taken out of it."""
    if node.target != aten.select.int or not isinstance(arguments[0], User) or list(arguments[1:]) != [0, 0]:
        return None
    user = arguments[0]
    return Bare(user) if user.single and (user.axis, user.factor) == (0, 1) else None


class Sweep:
    """One run over the graph.

    Args:
        program: the exported model, functional.
        constants: its parameters, buffers and constant tensors by placeholder name.
        sides: side of every input by placeholder name; `user` ones have R rows, the others B.
        weight: keeps a weight that was computed from the model's own.
        site: takes note of a product that was cut.
        options: how to cut.
        refuse: takes note of a product that was not.
    """

    def __init__(
        self,
        program: ExportedProgram,
        constants: Mapping[str, Tensor],
        sides: Mapping[str, str],
        weight: Weights,
        site: Callable[[Site], None],
        options: Options,
        refuse: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        self.graph = program.graph
        self.constants = constants
        self._sides = dict(zip(program.graph_signature.user_inputs, sides.values(), strict=True))
        self._weight = weight
        self._given = _given(self.graph, self._sides)
        self.options = options
        self._note, self._refuse = site, refuse
        self._sited: set[str] = set()
        # Name of the node that is run, in which stand-ins may run others.
        self.current = ""
        self._request: Tensor | None = None
        self._rows: Any = 1
        self.requests: Any = 1
        rows = next(
            node
            for node in self.graph.nodes
            if node.op == "placeholder" and self._sides.get(node.name) in ("item", "cross")
        )
        # The model's number of rows: as an expression, and as torch's own symbol.
        self.row_symbol, self.raw_rows = sizes(rows)[0], raw(rows)[0]
        self._wholes: dict[tuple[int, str], tuple[Any, Any]] = {}
        # Products that were made with an earlier one, by node.
        self.shared: dict[str, Form] = {}
        self.later: dict[str, Site] = {}

    def run(self, inputs: Sequence[Tensor], request_B: Tensor | None) -> list[Tensor]:
        """Score: `inputs` in the model's order; without `request_B` all rows belong to one request."""
        self._request = request_B
        named = dict(zip(self._sides, inputs, strict=True))
        self._rows = next(x.shape[0] for name, x in named.items() if self._sides[name] in ("item", "cross"))
        users = [x for name, x in named.items() if self._sides[name] == "user"]
        self.requests = users[0].shape[0] if users else 1
        environment: dict[Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                environment[node] = self._placeholder(node, named)
            elif node.op == "output":
                return [self.whole(environment[out]) for out in node.args[0]]
            else:
                environment[node] = self._call(node, environment)
        raise AssertionError("a graph ends in its output")

    def weight(self, name: str, make: Callable[[], Tensor], blocks: Sequence[Block] = ()) -> Tensor:
        """Keep a computed weight, but for one that a `const` input goes into: the next call has another."""
        return make() if self.current in self._given else self._weight(name, make, blocks)

    @property
    def one_request(self) -> bool:
        """Whether all rows belong to one request."""
        return self._request is None

    def _placeholder(self, node: Call, named: Mapping[str, Tensor]) -> Any:
        if node.name in self.constants:
            return self.constants[node.name]
        tensor, side = named[node.name], self._sides[node.name]
        if side == "const":
            return tensor
        # The model may repeat the user for the candidates itself.
        return User(tensor, single=sizes(node)[0] == 1) if side == "user" else Row(tensor)

    def _call(self, node: Call, environment: Mapping[Node, Any]) -> Any:
        arguments = list(torch.fx.map_arg(node.args, environment.__getitem__))
        options = torch.fx.map_arg(node.kwargs, environment.__getitem__)
        self.current = node.name
        result = self.apply(node, arguments, options)
        if node.target in reasons.PRODUCTS and node.name not in self._sited and self.options.cut:
            refusal = reasons.refusal(node, arguments)
            if refusal is not None:
                self._refuse(refusal)
        return result

    def apply(self, node: Call, arguments: list[Any], options: Mapping[str, Any] | None = None) -> Any:
        """Run one operation on values.

        Args:
            node: the operation, or a stand-in for it on other shapes.
            arguments: values in the place of its arguments.
            options: of its keyword arguments.
        """
        options = options or {}
        found = bare_row(node, arguments)
        leaves = leaves_of([arguments, list(options.values())])
        kind = next((type(leaf) for leaf in leaves if type(leaf) in WRAPPED), None)
        if found is None and kind is not None:
            found = WRAPPED[kind](self, node, arguments, options)
        if found is None and node.target in RULES and (not options or node.target in OPTIONED):
            found = RULES[node.target](self, node, arguments)
        if found is None:
            found = self.plain(node, arguments, options)
        return self._marked(found, node, leaves)

    def plain(self, node: Call, arguments: list[Any], options: Mapping[str, Any] | None = None) -> Any:
        """Run the operation on whole tensors, at R rows if it is row by row and has no candidate's part."""
        options = options or {}
        leaves = leaves_of([arguments, list(options.values())])
        users = [x for x in leaves if isinstance(x, Value) and values.of_user(x)]
        candidates = [x for x in leaves if isinstance(x, Value) and not values.of_user(x)]
        counts = any(isinstance(x, Count) for x in leaves)
        if users and not candidates and not counts and node.target in ROW_BY_ROW:
            found = self._on_requests(node, arguments, options)
            if found is not None:
                return found
        # What was assembled may lie in memory otherwise than the model's own tensor.
        target = aten.reshape.default if node.target in VIEWS else node.target
        result = target(*mapped(arguments, self.whole), **mapped(dict(options), self.whole))
        return _rewrapped(result, Row if users or candidates or counts else None, Count if counts else None)

    def _on_requests(self, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Any:
        given = leaves_of([arguments, list(options.values())])
        if any(isinstance(x, Value) and not isinstance(x, User | Form) for x in given):
            return None
        held = [self.held(x) for x in given if isinstance(x, User | Form)]
        axes = {(user.axis, user.factor) for user in held}
        if len(axes) != 1:
            return None
        axis, factor = axes.pop()
        if not ROW_BY_ROW[node.target](node, axis, held):
            return None
        single = all(user.single for user in held)
        result = node.target(*mapped(arguments, self.at_requests), **mapped(dict(options), self.at_requests))
        if node.target in reasons.PRODUCTS and not single:
            self._once(node, held)
        return _rewrapped(result, lambda tensor: User(tensor, axis, factor, single), None)

    def _once(self, node: Call, held: list[User]) -> None:
        shape = sizes(node)
        positions = 1
        for size in [size for size in shape[:-1] if isinstance(size, int)]:
            positions *= size
        positions *= held[0].factor
        width = int(held[0].tensor.shape[-1])
        self.site(Site(node.name, width, 0, int(shape[-1]), positions, "user_only", width=width))

    def site(self, site: Site) -> None:
        """Take note of a product that costs less than in the model."""
        self._sited.add(self.current)
        self._note(replace(site, node=self.current))

    def held(self, value: User | Form) -> User:
        """A value of the user alone as one tensor."""
        if isinstance(value, User):
            return value
        made = self._once_made(value, "R", lambda: values.assembled(value, lambda x: x, self.requests))
        return User(made)

    def at_requests(self, value: Any) -> Any:
        """A value of the user as a tensor of R rows; others as they are."""
        return self.held(value).tensor if isinstance(value, User | Form) else value

    def spread(self, tensor: Tensor) -> Tensor:
        """Repeat a tensor of R rows for the candidates; with one request it stays 1 row, which broadcasts."""
        return tensor if self._request is None else tensor.index_select(0, self._request)

    def broadcast(self, value: Any) -> Any:
        """A value as an operand that broadcasts against B rows."""
        if isinstance(value, User) and (value.axis, value.factor) == (0, 1):
            return self.spread(value.tensor)
        return self.whole(value)

    def whole(self, value: Any) -> Any:
        """A value as the tensor of B rows that the model itself would have."""
        if isinstance(value, Row):
            return value.tensor
        if isinstance(value, Count):
            return value.value
        if not isinstance(value, Value):
            return value
        return self._once_made(value, "B", lambda: self._whole(value))

    def _once_made(self, value: Any, rows: str, make: Callable[[], Tensor]) -> Tensor:
        """Several operations may need the same tensor; the value is kept, as its id stands for it."""
        key = (id(value), rows)
        if key not in self._wholes:
            self._wholes[key] = (value, make())
        made: Tensor = self._wholes[key][1]
        return made

    def _whole(self, value: Any) -> Any:
        if isinstance(value, Form):
            whole = values.assembled(value, self.spread, self._rows)
            return whole.expand(self._rows, *value.middle, value.width)
        if isinstance(value, Normed):
            even = (self.whole(value.form) - value.mean_B1) * value.rstd_B1
            even = even if value.weight is None else even * value.weight
            return even if value.bias is None else even + value.bias
        if isinstance(value, Blocks):
            return torch.cat([self.whole(part) for part in value.parts], dim=value.axis)
        if isinstance(value, Outer):
            return value.own.tensor * self.spread(value.user.tensor)
        if isinstance(value, Tall):
            return self.whole(value.value).unsqueeze(-1)
        if isinstance(value, Folded):
            return self.whole(value.form).flatten(0, -2)
        return self._repeated(value.user)[0] if isinstance(value, Bare) else self._repeated(value)

    def _repeated(self, user: User) -> Tensor:
        if user.single:
            if self._request is None:
                return user.tensor
            raise ModelError(
                "the model repeats the user for the candidates itself, in a way that cannot be told for "
                "several requests; give it the user's inputs with one row per candidate"
            )
        shape = user.tensor.shape
        cut = (*shape[: user.axis], self.requests, user.factor, *shape[user.axis + 1 :])
        tensor = user.tensor.reshape(cut).movedim(user.axis, 0)
        rows = self.spread(tensor).expand(self._rows, *tensor.shape[1:])
        return rows.movedim(0, user.axis).flatten(user.axis, user.axis + 1)

    def form(self, value: Any) -> Form | None:
        """A value as a form, if its rows are the first axis and it has columns."""
        if not self.options.cut:
            return None
        if isinstance(value, Form):
            return value
        if isinstance(value, Outer):
            return values.whole(self.whole(value), of_user=False, mixed=value.mixed)
        if isinstance(value, Row) and value.has_rows and _has_columns(value.tensor):
            return values.whole(value.tensor, of_user=False, mixed=value.mixed)
        plain = isinstance(value, User) and (value.axis, value.factor, value.single) == (0, 1, False)
        if plain and _has_columns(value.tensor):
            return values.whole(value.tensor, of_user=True)
        return None

    def has_rows(self, node: Call) -> bool:
        """Whether the first axis of a node's tensor is the model's rows, and no other is."""
        shape = sizes(node)
        return (
            bool(shape) and shape[0] == self.row_symbol and all(isinstance(size, int) for size in shape[1:])
        )

    def _marked(self, result: Any, node: Call, leaves: list[Any]) -> Any:
        """Say of a whole tensor whether its first axis is the rows, and where the user came into it."""
        if isinstance(result, list | tuple):
            return [self._marked(part, node, leaves) for part in result]
        if not isinstance(result, Row):
            return result
        shape = node.meta["val"] if not isinstance(node.meta["val"], list | tuple) else None
        rows = result.has_rows if shape is None else self.has_rows(node)
        return replace(
            result, has_rows=rows, mixed=result.mixed or reasons.mixture(node, leaves, self.current)
        )


def _given(graph: torch.fx.Graph, sides: Mapping[str, str]) -> set[str]:
    """Names of the nodes that depend on a `const` input."""
    found = {name for name, side in sides.items() if side == "const"}
    for node in graph.nodes:
        if any(parent.name in found for parent in node.all_input_nodes):
            found.add(node.name)
    return found


def _has_columns(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.is_floating_point()


def _rewrapped(result: Any, tensor: Any, number: Any) -> Any:
    if isinstance(result, list | tuple):
        return [_rewrapped(part, tensor, number) for part in result]
    if isinstance(result, Tensor):
        return tensor(result) if tensor else result
    return number(result) if number and result is not None else result
