"""MaRI (arXiv 2602.23105): products with a weight, and the norms that fold into one.

Shape legend: B rows, D columns, N outputs of a product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feedworks.mari import values
from feedworks.mari.calls import Call, Stand, raw, sizes
from feedworks.mari.products import Weight, normed_product, product
from feedworks.mari.rules.elementwise import lazy
from feedworks.mari.rules.tables import SAME, argument, rank
from feedworks.mari.sweep import Sweep, rule
from feedworks.mari.values import Bare, Form, Normed, Row, User, Value

aten = torch.ops.aten


@rule(aten.linear.default)
def _linear(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    bias_N = arguments[2] if len(arguments) > 2 else None
    return times(sweep, node, arguments[0], arguments[1], bias_N)


@rule(aten.addmm.default)
def _addmm(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    bias_N, data, weight_DN = arguments
    if isinstance(bias_N, User) and isinstance(data, Row) and isinstance(weight_DN, Tensor):
        # A product that begins at the user's part, as in a twin, is cut already.
        return Row(torch.addmm(sweep.broadcast(bias_N), data.tensor, weight_DN))
    if isinstance(bias_N, Value):
        mm = Stand(f"{node.name}_mm", aten.mm.default, node.args[1:], raw(node))
        add = Stand(f"{node.name}_add", aten.add.Tensor, (mm, node.args[0]), raw(node))
        return sweep.apply(add, [sweep.apply(mm, [data, weight_DN]), bias_N])
    if not isinstance(weight_DN, Tensor) or not isinstance(bias_N, Tensor) or bias_N.ndim != 1:
        return None
    return times(sweep, node, data, weight_DN.t(), bias_N.expand(weight_DN.shape[1]))


@rule(aten.mm.default)
def _mm(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    data, weight_DN = arguments
    return times(sweep, node, data, weight_DN.t(), None) if isinstance(weight_DN, Tensor) else None


@rule(aten.einsum.default)
def _einsum(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    """One data operand whose last axis is summed with one axis of a weight of two."""
    equation, operands = arguments[0].replace(" ", ""), arguments[1]
    inputs, _, output = equation.partition("->")
    if len(operands) != 2 or inputs.count(",") != 1 or "." in equation:
        return None
    (data, weight), (left, right) = operands, inputs.split(",")
    if isinstance(data, Tensor):
        data, weight, left, right = weight, data, right, left
    if not isinstance(weight, Tensor) or len(right) != 2 or left[-1] not in right:
        return None
    other = right.replace(left[-1], "")
    if len(other) != 1 or other in left or output != left[:-1] + other:
        return None
    weight_ND = weight if right == other + left[-1] else weight.t()
    return times(sweep, node, data, weight_ND, None)


@rule(aten.tensordot.default)
def _tensordot(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    data, weight_DN, one, other = arguments[:4]
    if not isinstance(weight_DN, Tensor) or weight_DN.ndim != 2 or len(one) != 1 or len(other) != 1:
        return None
    if one[0] % len(sizes(node.args[0])) != len(sizes(node.args[0])) - 1:
        return None
    return times(sweep, node, data, weight_DN.t() if other[0] % 2 == 0 else weight_DN, None)


def times(sweep: Sweep, node: Call, data: Any, weight_ND: Any, bias_N: Any) -> Form | Row | None:
    """A value times a weight of the model, if something of it can stay apart."""
    if not isinstance(weight_ND, Tensor) or not isinstance(bias_N, Tensor | None) or weight_ND.ndim != 2:
        return None
    if bias_N is not None and (bias_N.ndim != 1 or bias_N.numel() != weight_ND.shape[0]):
        return None
    weight = Weight(node.name, weight_ND, bias_N)
    if isinstance(data, Normed):
        return normed_product(sweep, node, data, weight)
    form = sweep.form(data)
    if form is None or not (form.mixed or lazy(form)) or not values.saves(form):
        return None
    return _shared(sweep, node, form, weight)


def _shared(sweep: Sweep, node: Call, form: Form, weight: Weight) -> Form:
    """Several products of one input are one product, each a slice of it."""
    if node.name in sweep.shared:
        sweep.site(sweep.later[node.name])
        return sweep.shared[node.name]
    weights = [weight, *_siblings(sweep, node)] if form.mixed else [weight]
    whole = product(sweep, form, weights)
    if len(weights) == 1:
        return whole
    start = 0
    for each in weights:
        sweep.shared[each.node] = values.columns(whole, start, start + each.outputs)
        start += each.outputs
    return sweep.shared[node.name]


def _siblings(sweep: Sweep, node: Call) -> list[Weight]:
    """Later products of the same input with weights and biases of the model itself."""
    found: list[Weight] = []
    if node.target != aten.linear.default or not hasattr(node, "graph"):
        return found
    source = _source(node.args[0])
    after = False
    for other in node.graph.nodes:
        after = after or other is node
        if not after or other is node or other.target != aten.linear.default:
            continue
        if _source(other.args[0]) is not source:
            continue
        given = [argument(other, 1), argument(other, 2)]
        names = [each.name for each in given if each is not None]
        if all(name in sweep.constants for name in names):
            weight, *bias = (sweep.constants[name] for name in names)
            found.append(Weight(other.name, weight, bias[0] if bias else None))
    return found


def _source(node: Call) -> Call:
    while getattr(node, "target", None) in SAME:
        node = node.args[0]
    return node


@dataclass(frozen=True, eq=False)
class _Statistics:
    """BatchNorm in evaluation: `x * scale + shift` column by column."""

    scale: Tensor
    shift: Tensor


@rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(sweep: Sweep, node: Call, arguments: list[Any]) -> list[Any] | None:
    form = arguments[0]
    return None if not isinstance(form, Form) or form.middle else [batch_normed(form, arguments), None, None]


def batch_normed(form: Form, arguments: list[Any]) -> Form:
    """BatchNorm over the columns with the statistics of training."""
    _, weight, bias, mean, variance, _, epsilon = arguments
    scale = (variance + epsilon).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    normed = values.shifted(values.scaled(form, scale), shift)
    return replace(normed, helped=normed.helped | {"batch_norm"})


@rule(aten.layer_norm.default)
def _layer_norm(sweep: Sweep, node: Call, arguments: list[Any]) -> Normed | None:
    given = [*arguments, *(None, None, 1e-5)[len(arguments) - 2 :]]
    form, shape, weight, bias, epsilon = given[:5]
    if not isinstance(form, Form) or not form.mixed or not values.tiles(form) or len(shape) != 1:
        return None
    return Normed(form, *values.moments(form, sweep.spread, epsilon), weight, bias)


@rule(aten.matmul.default)
def _matmul(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    from feedworks.mari.rules.attention import batched

    data, weight = arguments
    if isinstance(weight, Bare):
        return _times_user(sweep, node, data, weight)
    if isinstance(weight, Tensor) and weight.ndim == 2 and rank(node) == len(sizes(node.args[0])):
        return times(sweep, node, data, weight.t(), None)
    return batched(sweep, node, arguments)


def _times_user(sweep: Sweep, node: Call, data: Any, weight: Bare) -> Row | None:
    """A candidate's row `(B, L)` times its user's own matrix `(L, N)`, as a twin has it for one request."""
    rows = sizes(node.args[0])[0]
    by_row = isinstance(data, Row) and data.tensor.ndim == 2 and bool(getattr(rows, "is_Symbol", False))
    if not by_row or weight.user.tensor.ndim != 3:
        return None
    if sweep.one_request:
        return Row(data.tensor @ weight.user.tensor[0])
    return Row(torch.bmm(data.tensor.unsqueeze(1), sweep.spread(weight.user.tensor)).squeeze(1))
