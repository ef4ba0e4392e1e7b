"""MaRI (arXiv 2602.23105): run a model's graph on values that keep the user apart.

The graph comes from torch.export, in functional ATen form. Every operation either has a rule that keeps the
parts of a value apart, or, if it looks at one row at a time, runs on the user's R rows, or else gets the
whole tensors that the model itself would have had. So a rule that is missing costs speed, never exactness.

Shape legend: B rows, R requests, D columns, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from feedworks.mari import values
from feedworks.mari.values import Atom, Form, Normed, Term, User

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)
Call = Any  # a torch.fx.Node, whose arguments are typed as a union of some thirty things


@dataclass(frozen=True, eq=False)
class Row:
    """A tensor as in the model: it depends on the candidates, or on all rows together.

    `has_rows`: its first axis is the B rows; a mean over the rows, for one, has none.
    """

    tensor: Tensor
    has_rows: bool = True


@dataclass(frozen=True, eq=False)
class Count:
    """A size that was computed from the number of rows."""

    value: Any


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


@dataclass(frozen=True)
class Site:
    """A product that was cut.

    Attributes:
        node: its name in the exported graph.
        user_width: columns of the user, Du.
        other_width: columns of candidates and crossings, Dr.
        outputs: N.
        positions: rows of the product for one candidate, more than 1 inside sequences.
    """

    node: str
    user_width: int
    other_width: int
    outputs: int
    positions: int


Rule = Callable[["Sweep", Call, list[Any]], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operations."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


class Sweep:
    """One run over the graph.

    Args:
        program: the exported model, functional.
        constants: its parameters, buffers and constant tensors by placeholder name.
        sides: side of every input by placeholder name; `user` ones have R rows, the others B.
        weight: keeps a weight that was computed from the model's own.
        site: takes note of a product that was cut.
        options: how to cut.
    """

    def __init__(
        self,
        program: ExportedProgram,
        constants: Mapping[str, Tensor],
        sides: Mapping[str, str],
        weight: Weights,
        site: Callable[[Site], None],
        options: Options,
    ) -> None:
        self._graph = program.graph
        self._constants = constants
        self._sides = sides
        self.weight = weight
        self.site = site
        self.options = options
        self._request: Tensor | None = None
        self._rows: Any = 1
        self._requests: Any = 1

    def run(self, inputs: Sequence[Tensor], request_B: Tensor | None) -> list[Tensor]:
        """Score: `inputs` in the model's order; without `request_B` all rows belong to one request."""
        self._request = request_B
        named = dict(zip(self._sides, inputs, strict=True))
        self._rows = next(x.shape[0] for name, x in named.items() if self._sides[name] in ("item", "cross"))
        users = [x for name, x in named.items() if self._sides[name] == "user"]
        self._requests = users[0].shape[0] if users else 1
        environment: dict[Node, Any] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                environment[node] = self._placeholder(node.name, named)
            elif node.op == "output":
                return [self.whole(environment[out]) for out in node.args[0]]
            else:
                environment[node] = self._call(node, environment)
        raise AssertionError("a graph ends in its output")

    def _placeholder(self, name: str, named: Mapping[str, Tensor]) -> Any:
        if name in self._constants:
            return self._constants[name]
        side = self._sides[name]
        if side == "const":
            return named[name]
        return User(named[name]) if side == "user" else Row(named[name])

    def _call(self, node: Call, environment: Mapping[Node, Any]) -> Any:
        arguments = list(torch.fx.map_arg(node.args, environment.__getitem__))
        options = torch.fx.map_arg(node.kwargs, environment.__getitem__)
        if node.target in RULES and not options:
            found = RULES[node.target](self, node, arguments)
            if found is not None:
                return _marked(found, node)
        return _marked(self.plain(node, arguments, options), node)

    def plain(self, node: Call, arguments: list[Any], options: Mapping[str, Any] | None = None) -> Any:
        """Run the operation on whole tensors, at R rows if it is row by row and has no candidate's part."""
        options = options or {}
        leaves = _leaves([arguments, list(options.values())])
        users = [x for x in leaves if isinstance(x, User) or (isinstance(x, Form) and x.of_user)]
        candidates = [
            x for x in leaves if isinstance(x, Row | Normed) or (isinstance(x, Form) and not x.of_user)
        ]
        counts = any(isinstance(x, Count) for x in leaves)
        if users and not candidates and not counts and node.target in ROW_BY_ROW:
            found = self._on_requests(node, arguments, options)
            if found is not None:
                return found
        # What was assembled may lie in memory otherwise than the model's own tensor.
        target = aten.reshape.default if node.target in VIEWS else node.target
        result = target(*_mapped(arguments, self.whole), **_mapped(dict(options), self.whole))
        return _wrapped(result, Row if users or candidates or counts else None, Count if counts else None)

    def _on_requests(self, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Any:
        held = [
            self.held(x) for x in _leaves([arguments, list(options.values())]) if isinstance(x, User | Form)
        ]
        axes = {(user.axis, user.factor) for user in held}
        if len(axes) != 1:
            return None
        axis, factor = axes.pop()
        if not ROW_BY_ROW[node.target](node, axis, held):
            return None
        at_requests = _mapped(arguments, self.at_requests)
        result = node.target(*at_requests, **_mapped(dict(options), self.at_requests))
        return _wrapped(result, lambda tensor: User(tensor, axis, factor), None)

    def held(self, value: User | Form) -> User:
        """A value of the user alone as one tensor."""
        return (
            value if isinstance(value, User) else User(values.assembled(value, lambda x: x, self._requests))
        )

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
        if isinstance(value, Form):
            return values.assembled(value, self.spread, self._rows).expand(
                self._rows, *value.middle, value.width
            )
        if isinstance(value, User):
            return self._repeated(value)
        if isinstance(value, Normed):
            even = (self.whole(value.form) - value.mean_B1) * value.rstd_B1
            even = even if value.weight is None else even * value.weight
            return even if value.bias is None else even + value.bias
        return value

    def _repeated(self, user: User) -> Tensor:
        shape = user.tensor.shape
        cut = (*shape[: user.axis], self._requests, user.factor, *shape[user.axis + 1 :])
        tensor = user.tensor.reshape(cut).movedim(user.axis, 0)
        rows = self.spread(tensor).expand(self._rows, *tensor.shape[1:])
        return rows.movedim(0, user.axis).flatten(user.axis, user.axis + 1)

    def form(self, value: Any) -> Form | None:
        """A value as a form, if its rows are the first axis and it has columns."""
        if not self.options.cut:
            return None
        if isinstance(value, Form):
            return value
        if isinstance(value, Row):
            return (
                values.whole(value.tensor, of_user=False)
                if value.has_rows and _has_columns(value.tensor)
                else None
            )
        if isinstance(value, User) and (value.axis, value.factor) == (0, 1):
            return values.whole(value.tensor, of_user=True) if _has_columns(value.tensor) else None
        return None

    def normed_product(self, node: Call, normed: Normed, weight_ND: Tensor, bias_N: Tensor | None) -> Row:
        """A layer-normalised form times a matrix: mean and deviation are applied to the product.

        With Wg the matrix times the norm's weight: `(x Wg - mean * sum of Wg) * rstd + bias W + b`.
        """
        scale, shift = normed.weight, normed.bias

        def bias() -> Tensor:
            own = weight_ND.new_zeros(weight_ND.shape[0]) if bias_N is None else bias_N
            return own if shift is None else own + weight_ND @ shift

        graded_ND = weight_ND if scale is None else weight_ND * scale
        sums_N = self.weight(f"{node.name}_sums", lambda: graded_ND.sum(dim=1))
        product = self.whole(self.product(node, normed.form, graded_ND, None))
        even = (product - normed.mean_B1 * sums_N) * normed.rstd_B1
        return Row(even + self.weight(f"{node.name}_shift", bias))

    def product(self, node: Call, form: Form, weight_ND: Tensor, bias_N: Tensor | None) -> Form:
        """A form times a matrix, each side on its own."""
        outputs = weight_ND.shape[0]
        by_cut: dict[tuple[int, tuple[int, int]], tuple[Atom, list[Term]]] = {}
        for term in form.terms:
            by_cut.setdefault((id(term.atom.tensor), term.cut), (term.atom, []))[1].append(term)
        groups: dict[tuple[bool, tuple[int, ...], tuple[int, ...]], list[tuple[Tensor, list[Term]]]] = {}
        for (_, cut), (atom, terms) in by_cut.items():
            apart: tuple[int, ...] = (len(groups),) if self.options.layout == "keep" else ()
            key = (atom.of_user, apart, tuple(atom.tensor.shape[1:-1]))
            groups.setdefault(key, []).append((_cut(atom.tensor, cut), terms))
        bias, offset = bias_N, form.offset
        if offset is not None:
            bias = self.weight(f"{node.name}_bias", lambda: _bias(offset, weight_ND, bias_N))
        terms = []
        for number, (key, members) in enumerate(sorted(groups.items(), key=lambda group: not group[0][0])):
            extra = -sum(tensor.shape[-1] for tensor, _ in members) % self.options.pad_to
            make = partial(_weights, members, weight_ND, extra)
            weight = self.weight(f"{node.name}_{number}", make, _blocks(members, weight_ND))
            parts = [tensor for tensor, _ in members]
            data = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
            data = torch.nn.functional.pad(data, (0, extra)) if extra else data
            out = torch.nn.functional.linear(data, weight, bias if number == 0 else None)
            terms.append(Term(Atom(out, key[0]), 0, (0, outputs)))
        widths = {
            side: sum(w[1] - w[0] for (_, w), (a, _) in by_cut.items() if a.of_user is side)
            for side in (True, False)
        }
        positions = 1
        for size in form.middle:
            positions *= int(size)
        self.site(Site(node.name, widths[True], widths[False], outputs, positions))
        return Form(tuple(terms), form.middle, outputs)


def sizes(node: Call) -> tuple[Any, ...]:
    """Shape of a node's tensor in the model: numbers, and expressions in the number of rows.

    Expressions, not torch's symbols: those may not be compared while another graph is traced.
    """
    return tuple(size if isinstance(size, int) else size.node.expr for size in node.meta["val"].shape)


def _marked(result: Any, node: Call) -> Any:
    """Mark a tensor whose first axis is not the rows."""
    if isinstance(result, Row):
        shape = sizes(node)
        return Row(result.tensor, bool(shape) and not isinstance(shape[0], int))
    return result


def _has_columns(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.is_floating_point()


def _cut(tensor: Tensor, cut: tuple[int, int]) -> Tensor:
    return tensor if cut == (0, tensor.shape[-1]) else tensor[..., cut[0] : cut[1]]


def _weights(members: list[tuple[Tensor, list[Term]]], weight_ND: Tensor, extra: int) -> Tensor:
    """The columns of a weight that meet each tensor, added up where it stands in several, then zeros."""
    blocks = []
    for _, terms in members:
        cuts = [weight_ND[:, term.start : term.stop] * term.scale for term in terms]
        blocks.append(torch.stack(cuts).sum(dim=0) if len(cuts) > 1 else cuts[0])
    whole = torch.cat(blocks, dim=1)
    return torch.nn.functional.pad(whole, (0, extra)).contiguous()


def _blocks(members: list[tuple[Tensor, list[Term]]], weight_ND: Tensor) -> list[Block]:
    """What of the weight stands unchanged in the one that `_weights` makes."""
    blocks, column = [], 0
    for tensor, terms in members:
        if len(terms) == 1 and not isinstance(terms[0].scale, Tensor) and terms[0].scale == 1.0:
            blocks.append(Block(weight_ND, terms[0].start, terms[0].stop, 0, column))
        column += tensor.shape[-1]
    return blocks


def _bias(offset_D: Tensor, weight_ND: Tensor, bias_N: Tensor | None) -> Tensor:
    product = weight_ND @ offset_D
    return product if bias_N is None else bias_N + product


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, list | tuple):
        return [_mapped(part, function) for part in tree]
    if isinstance(tree, dict):
        return {key: _mapped(part, function) for key, part in tree.items()}
    return function(tree)


def _wrapped(result: Any, tensor: Any, number: Any) -> Any:
    if isinstance(result, list | tuple):
        return [_wrapped(part, tensor, number) for part in result]
    if isinstance(result, Tensor):
        return tensor(result) if tensor else result
    return number(result) if number and result is not None else result


ROW_BY_ROW: dict[Any, Callable[[Call, int, list[User]], bool]] = {}
