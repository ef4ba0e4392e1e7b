"""MaRI (arXiv 2602.23105): which operations keep the parts of a value apart, and how.

Importing this module fills `RULES` and `ROW_BY_ROW` of `feedworks.mari.sweep`.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from feedworks.mari import values
from feedworks.mari.sweep import ROW_BY_ROW, VIEWS, Call, Count, Row, Sweep, rule, sizes
from feedworks.mari.values import Form, Normed, User

aten = torch.ops.aten

# One tensor in, one out, number by number.
POINTWISE = (
    aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default,
    aten.elu.default, aten.leaky_relu.default, aten.exp.default, aten.log.default, aten.log1p.default,
    aten.abs.default, aten.neg.default, aten.sqrt.default, aten.rsqrt.default, aten.sign.default,
    aten.softplus.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.pow.Tensor_Scalar, aten.hardsigmoid.default, aten.hardswish.default, aten.reciprocal.default,
    aten.mish.default, aten.erf.default, aten.sin.default, aten.cos.default, aten.square.default,
)  # fmt: skip
# Two tensors that broadcast, number by number.
PAIRWISE = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default,
    aten.minimum.default, aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.gt.Tensor, aten.ge.Tensor,
    aten.le.Tensor, aten.where.self, aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.lt.Scalar,
    aten.ge.Scalar, aten.le.Scalar, aten.logical_not.default, aten.logical_and.default,
    aten.masked_fill.Scalar, aten.bitwise_not.default, aten.bitwise_and.Tensor, aten.add.Scalar,
    aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.rsub.Scalar,
)  # fmt: skip
SAME = (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)


def _rank(node: Call) -> int:
    return len(sizes(node))


def _argument(node: Call, place: int, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else default


def _filled(arguments: list[Any], *defaults: Any) -> list[Any]:
    """Positional arguments with the defaults of those left out."""
    missing = len(defaults) - (len(arguments) - 1 if len(defaults) > 1 else len(arguments) - 2)
    return [*arguments, *defaults[len(defaults) - missing :]]


def _axes_of(node: Call, place: int) -> list[int]:
    rank = len(sizes(node.args[0]))
    axes = _argument(node, place, [])
    axes = [axes] if isinstance(axes, int) else list(axes or range(rank))
    return [axis % rank for axis in axes]


def _equal_ranks(node: Call, axis: int, held: list[User]) -> bool:
    return len({user.tensor.ndim for user in held}) == 1 and held[0].tensor.ndim == _rank(node)


def _not_the_rows(place: int) -> Any:
    def check(node: Call, axis: int, held: list[User]) -> bool:
        return axis not in _axes_of(node, place)

    return check


def _keeps_axis(place: int) -> Any:
    """Reductions whose result keeps the place of the rows: the reduced axes come after them."""

    def check(node: Call, axis: int, held: list[User]) -> bool:
        return all(other > axis for other in _axes_of(node, place))

    return check


for _op in (*POINTWISE, *PAIRWISE, *SAME):
    ROW_BY_ROW[_op] = _equal_ranks
for _op in (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default):
    ROW_BY_ROW[_op] = _not_the_rows(1)
for _op in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default):
    ROW_BY_ROW[_op] = _keeps_axis(1)
for _op in (aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.split_with_sizes.default):
    ROW_BY_ROW[_op] = lambda node, axis, held: _touched(node) > axis
ROW_BY_ROW[aten.cat.default] = lambda node, axis, held: (
    len({user.tensor.ndim for user in held}) == 1
    and len(held) == len(node.args[0])
    and _argument(node, 1, 0) % _rank(node) > axis
)
ROW_BY_ROW[aten.embedding.default] = lambda node, axis, held: len(held) == 1
ROW_BY_ROW[aten.layer_norm.default] = lambda node, axis, held: (
    len(held) == 1 and axis < held[0].tensor.ndim - len(node.args[1])
)
ROW_BY_ROW[aten.linear.default] = lambda node, axis, held: len(held) == 1 and axis < held[0].tensor.ndim - 1
ROW_BY_ROW[aten.bmm.default] = lambda node, axis, held: axis == 0 and len(held) == 2
ROW_BY_ROW[aten.matmul.default] = lambda node, axis, held: (
    axis == 0
    and held[0].tensor.ndim >= 3
    and (len({u.tensor.ndim for u in held}) == 1 if len(held) == 2 else node.args[1].meta["val"].ndim == 2)
)
ROW_BY_ROW[aten.scaled_dot_product_attention.default] = lambda node, axis, held: (
    axis == 0 and len({user.tensor.ndim for user in held}) == 1 and held[0].tensor.ndim >= 3
)


def _touched(node: Call) -> int:
    """The axis that a slice, a split or a new axis of 1 is about."""
    axis = _argument(node, 2 if node.target == aten.split_with_sizes.default else 1, 0)
    rank = len(sizes(node.args[0])) + (node.target == aten.unsqueeze.default)
    return int(axis % rank)


@rule(aten.sym_size.int)
def _size(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    size = node.meta["val"]
    return size if isinstance(size, int) else Count(sweep.whole(arguments[0]).shape[arguments[1]])


@rule(operator.getitem)
def _item(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return arguments[0][arguments[1]]


@rule(*SAME)
def _same(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return arguments[0]


@rule(aten.cat.default)
def _cat(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | None:
    parts, axis = arguments[0], _argument(node, 1, 0)
    if axis % _rank(node) != _rank(node) - 1:
        return None
    forms = [sweep.form(part) for part in parts]
    if any(form is None for form in forms):
        return None
    whole = values.joined([form for form in forms if form is not None])
    return whole if any(term.atom.of_user for term in whole.terms) or _lazy(whole) else None


def _lazy(form: Form) -> bool:
    """Whether an atom is shorter than the form in the middle, so that products with it are cheaper apart."""
    return any(tuple(term.atom.tensor.shape[1:-1]) != form.middle for term in form.terms)


@rule(aten.linear.default)
def _linear(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    value, weight_ND = arguments[:2]
    bias_N = arguments[2] if len(arguments) > 2 else None
    if not isinstance(weight_ND, Tensor) or not isinstance(bias_N, Tensor | None):
        return None
    if isinstance(value, Normed):
        return sweep.normed_product(node, value, weight_ND, bias_N)
    form = sweep.form(value)
    if form is None:
        return None
    return sweep.product(node, form, weight_ND, bias_N) if form.mixed or _lazy(form) else None


@rule(*POINTWISE)
def _pointwise(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | None:
    form = arguments[0]
    if not isinstance(form, Form) or not values.tiles(form):
        return None
    parts = []
    for term in values.pieces(form):
        tensor = values.tensor_of(term)
        if form.offset is not None:
            tensor = tensor + form.offset[term.start : term.stop]
        parts.append(values.whole(node.target(tensor, *arguments[1:]), of_user=term.atom.of_user))
    return replace(values.joined(parts), middle=form.middle)


@rule(aten.add.Tensor, aten.sub.Tensor)
def _sum(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    left, right = arguments
    sign = 1.0 if node.target == aten.add.Tensor else -1.0
    if _is_constant(left) and isinstance(right, Form):
        return _shift(values.scaled(right, sign), left, 1.0)
    if _is_constant(right) and isinstance(left, Form):
        return _shift(left, right, sign)
    first, second = sweep.form(left), sweep.form(right)
    if first is None or second is None or not _alike(first, second):
        return _broadcast(sweep, node, arguments)
    total = values.add(first, second, sign)
    return total if total.mixed or _lazy(total) else None


def _alike(left: Form, right: Form) -> bool:
    return left.width == right.width and len(left.middle) == len(right.middle)


def _of_candidates(value: Form | Row) -> bool:
    return value.has_rows if isinstance(value, Row) else not value.of_user


def _is_constant(value: Any) -> bool:
    return isinstance(value, Tensor | int | float)


def _shift(form: Form, by: Any, sign: float) -> Form | None:
    numbers = _per_column(form, by)
    return None if numbers is None else values.shifted(form, numbers * sign)


def _per_column(form: Form, by: Any) -> Tensor | None:
    """D numbers for a constant that is the same in all rows, None for others."""
    like = form.terms[0].atom.tensor
    if not isinstance(by, Tensor):
        return like.new_full((form.width,), by)
    if by.numel() not in (1, form.width) or (by.ndim and by.shape[-1] != by.numel()):
        return None
    if by.ndim > len(form.middle) + 2 or by.dtype != like.dtype:
        return None
    return by.reshape(-1).expand(form.width)


@rule(aten.mul.Tensor, aten.div.Tensor)
def _product(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    left, right = arguments
    divided = node.target == aten.div.Tensor
    if _is_constant(left) and isinstance(right, Form) and not divided:
        left, right = right, left
    if isinstance(left, Form) and _is_constant(right):
        by = right if not isinstance(right, Tensor) else _per_column(left, right)
        if by is None:
            return None
        return values.scaled(left, 1 / by if divided else by)
    return _broadcast(sweep, node, arguments)


@rule(
    *(op for op in PAIRWISE if op not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor))
)
def _pair(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return _broadcast(sweep, node, arguments)


def _broadcast(sweep: Sweep, node: Call, arguments: list[Any]) -> Row | None:
    """User and candidate meet number by number: with one request nothing is repeated."""
    has_rows = [x for x in arguments if isinstance(x, Form | Row) and _of_candidates(x)]
    users = [x for x in arguments if isinstance(x, User)]
    if not has_rows or not users or any(isinstance(x, Count) for x in arguments):
        return None
    if any(user.tensor.ndim != _rank(node) for user in users):
        return None
    return Row(node.target(*(sweep.broadcast(x) for x in arguments)))


@rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(sweep: Sweep, node: Call, arguments: list[Any]) -> list[Any] | None:
    form, weight, bias, mean, variance, _, epsilon = arguments
    if not isinstance(form, Form) or form.middle:
        return None
    scale = (variance + epsilon).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return [values.shifted(values.scaled(form, scale), shift), None, None]


@rule(aten.layer_norm.default)
def _layer_norm(sweep: Sweep, node: Call, arguments: list[Any]) -> Normed | None:
    given = [*arguments, *(None, None, 1e-5)[len(arguments) - 2 :]]
    form, shape, weight, bias, epsilon = given[:5]
    if not isinstance(form, Form) or not form.mixed or not values.tiles(form) or len(shape) != 1:
        return None
    return Normed(form, *values.moments(form, sweep.spread, epsilon), weight, bias)


@rule(aten.slice.Tensor)
def _slice(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, axis, start, stop, step = _filled(arguments, 0, None, None, 1)
    if sizes(node) == sizes(node.args[0]):
        return value
    if not isinstance(value, Form) or axis % _rank(node) != _rank(node) - 1 or step != 1:
        return None
    low, high, _ = slice(start, stop).indices(value.width)
    return values.columns(value, low, high)


@rule(aten.split_with_sizes.default)
def _split(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, sizes, axis = _filled(arguments, 0)
    if not isinstance(value, Form) or axis % (len(value.middle) + 2) != len(value.middle) + 1:
        return None
    stops = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [values.columns(value, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


@rule(aten.unsqueeze.default)
def _unsqueeze(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    axis = _touched(node)
    form = arguments[0]
    if not isinstance(form, Form) or not 0 < axis < _rank(node) - 1:
        return None
    middle = (*form.middle[: axis - 1], 1, *form.middle[axis - 1 :])
    return replace(form, terms=_atoms(form, lambda tensor: tensor.unsqueeze(axis)), middle=middle)


@rule(aten.expand.default)
def _expand(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    shape = sizes(node)
    before = sizes(node.args[0])
    form = sweep.form(arguments[0])
    if form is None or len(shape) != len(before) or shape[0] != before[0] or shape[-1] != before[-1]:
        return None
    if not all(isinstance(size, int) for size in shape[1:]):
        return None
    return replace(form, middle=tuple(shape[1:-1]))


@rule(*VIEWS, aten.reshape.default)
def _view(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    shape = sizes(node)
    if shape == sizes(node.args[0]):
        return value
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    if not isinstance(value, User):
        return None
    return _user_view(sweep, value, node)


def _user_view(sweep: Sweep, user: User, node: Call) -> User | None:
    rows = _row_symbol(sizes(node.args[0])[user.axis])
    before = sizes(node.args[0])[: user.axis]
    shape = list(sizes(node))
    places = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if rows is None or len(places) != 1 or not all(isinstance(size, int) for size in before):
        return None
    axis = places[0]
    factor = shape[axis] / rows
    if not factor.is_Integer or _count(before) != _count(shape[:axis]):
        return None
    shape[axis] = sweep._requests * int(factor)
    return User(user.tensor.reshape(shape), axis, int(factor))


def _row_symbol(size: Any) -> Any:
    symbols = [] if isinstance(size, int) else list(size.free_symbols)
    return symbols[0] if len(symbols) == 1 else None


def _count(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= int(size)
    return total


@rule(aten.permute.default)
def _permute(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, order = arguments
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    if not isinstance(value, User):
        return None
    order = [axis % value.tensor.ndim for axis in order]
    return User(value.tensor.permute(order), order.index(value.axis), value.factor)


@rule(aten.transpose.int)
def _transpose(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    order = list(range(_rank(node)))
    one, other = (axis % len(order) for axis in arguments[1:])
    order[one], order[other] = order[other], order[one]
    return _permute(sweep, node, [arguments[0], order])


@rule(aten.squeeze.dim)
def _squeeze(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    axis = arguments[1] % (_rank(node) + 1)
    if not isinstance(value, User) or axis == value.axis or value.tensor.shape[axis] != 1:
        return None
    return User(value.tensor.squeeze(axis), value.axis - (axis < value.axis), value.factor)


def _atoms(form: Form, change: Any) -> tuple[values.Term, ...]:
    made: dict[int, values.Atom] = {}
    terms = []
    for term in form.terms:
        if id(term.atom) not in made:
            made[id(term.atom)] = values.Atom(change(term.atom.tensor), term.atom.of_user)
        terms.append(replace(term, atom=made[id(term.atom)]))
    return tuple(terms)
