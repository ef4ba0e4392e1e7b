"""MaRI (arXiv 2602.23105): what works number by number, on parts that stand apart.

Shape legend: B rows, D columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from feedworks.mari import values
from feedworks.mari.calls import Call, sizes
from feedworks.mari.found import Mixed
from feedworks.mari.rules.tables import LIKE, PAIRWISE, POINTWISE, SAME, count, numbers, rank
from feedworks.mari.sweep import Sweep, rule
from feedworks.mari.values import Blocks, Count, Folded, Form, Normed, Outer, Row, Tall, Term, User, Value

aten = torch.ops.aten
_ALGEBRA = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


@rule(*SAME)
def _same(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return arguments[0]


@rule(*POINTWISE)
def _pointwise(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | None:
    form = arguments[0]
    return (
        _on_pieces(node, form, arguments[1:], {}) if isinstance(form, Form) and values.tiles(form) else None
    )


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int)
def _soft(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | None:
    """A softmax over positions, column by column."""
    form = arguments[0]
    inside = isinstance(form, Form) and values.tiles(form) and 0 < arguments[1] % rank(node) < rank(node) - 1
    return None if not inside or lazy(form) else _on_pieces(node, form, arguments[1:], node.kwargs)


@rule(aten.prelu.default)
def _prelu(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | None:
    form, slope = arguments
    plain = isinstance(form, Form) and isinstance(slope, Tensor) and slope.numel() == 1
    return _on_pieces(node, form, [slope], {}) if plain and values.tiles(form) else None


@rule(aten._to_copy.default, options=True)
def _to_copy(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Blocks | None:
    form, kind = arguments[0], node.kwargs.get("dtype")
    if not isinstance(form, Form) or not values.tiles(form) or kind is None or len(form.terms) < 2:
        return None
    if kind.is_floating_point:
        return _on_pieces(node, form, [], node.kwargs)
    parts = [node.target(_piece(form, term), **node.kwargs) for term in values.pieces(form)]
    kinds = [
        User(part) if term.atom.of_user else Row(part, mixed=term.atom.mixed)
        for part, term in zip(parts, values.pieces(form), strict=True)
    ]
    lengths = tuple(term.width for term in values.pieces(form))
    whole = all(tuple(part.shape[1:-1]) == form.middle for part in parts)
    return Blocks(tuple(kinds), rank(node) - 1, lengths, rank(node)) if whole else None


def _on_pieces(node: Call, form: Form, rest: list[Any], options: Any) -> Form:
    parts = []
    for term in values.pieces(form):
        made = node.target(_piece(form, term), *rest, **options)
        parts.append(values.whole(made, of_user=term.atom.of_user, mixed=term.atom.mixed))
    return replace(values.joined(parts), middle=form.middle, helped=form.helped | {"pointwise"})


def _piece(form: Form, term: Term) -> Tensor:
    tensor = values.tensor_of(term)
    return tensor if form.offset is None else tensor + form.offset[term.start : term.stop]


@rule(aten.add.Tensor, aten.sub.Tensor)
def _sum(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    left, right = arguments
    sign = 1.0 if node.target == aten.add.Tensor else -1.0
    if is_constant(left) and isinstance(right, Form):
        return _shift(values.scaled(right, sign), left, 1.0)
    if is_constant(right) and isinstance(left, Form):
        return _shift(left, right, sign)
    first, second = sweep.form(left), sweep.form(right)
    if first is None or second is None or not _alike(first, second):
        return _broadcast(sweep, node, arguments)
    total = values.add(first, second, sign)
    if not (total.mixed or lazy(total)):
        return None
    if values.own_columns(total) > values.whole_columns(total):
        total = values.compact(total)
    if values.own_columns(total) > values.whole_columns(total):
        return _broadcast(sweep, node, arguments)
    return total


def type_of(value: Value) -> torch.dtype | None:
    """Type of a value's numbers; None where its parts are of several."""
    if isinstance(value, Form):
        kinds = {term.atom.tensor.dtype for term in value.terms}
    elif isinstance(value, Blocks):
        found = {type_of(part) for part in value.parts}
        return found.pop() if len(found) == 1 else None
    elif isinstance(value, Normed | Folded):
        return type_of(value.form)
    elif isinstance(value, Tall):
        return type_of(value.value)
    else:
        kinds = {value.tensor.dtype} if isinstance(value, User | Row) else set()
    return kinds.pop() if len(kinds) == 1 else None


def _alike(left: Form, right: Form) -> bool:
    if type_of(left) != type_of(right):
        return False
    return left.width == right.width and len(left.middle) == len(right.middle)


def lazy(form: Form) -> bool:
    """Whether an atom is shorter than the form in the middle, so that products with it are cheaper apart."""
    return any(tuple(term.atom.tensor.shape[1:-1]) != form.middle for term in form.terms)


def is_constant(value: Any) -> bool:
    """Whether a value is the same for all rows and requests."""
    return isinstance(value, Tensor | int | float)


def _shift(form: Form, by: Any, sign: float) -> Form | None:
    entries = per_column(form, by)
    return None if entries is None else values.shifted(form, entries * sign)


def per_column(form: Form, by: Any) -> Tensor | None:
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
    if is_constant(left) and isinstance(right, Form) and not divided:
        left, right = right, left
    if isinstance(left, Form) and is_constant(right):
        by = right if not isinstance(right, Tensor) else per_column(left, right)
        if by is None or (divided and not isinstance(by, Tensor) and not by):
            return None
        return values.scaled(left, 1 / by if divided else by)
    if isinstance(left, Form) and isinstance(right, Form):
        found = _piece_by_piece(node, left, right)
        if found is not None:
            return found
    return _outer(sweep, node, arguments) or _broadcast(sweep, node, arguments)


def _outer(sweep: Sweep, node: Call, arguments: list[Any]) -> Outer | None:
    """A candidate's weights or vector times the user's history; most often a sum follows."""
    own, user = arguments if isinstance(arguments[0], Row) else arguments[::-1]
    if node.target != aten.mul.Tensor or not isinstance(own, Row) or not isinstance(user, User):
        return None
    plain = (user.axis, user.factor, user.single) == (0, 1, False) and own.has_rows
    shape = sizes(node)
    if not plain or not sweep.options.cut or len(shape) != 3 or not sweep.has_rows(node):
        return None
    mine, theirs = own.tensor, user.tensor
    if mine.ndim != 3 or tuple(theirs.shape[1:]) != shape[1:] or mine.dtype != theirs.dtype:
        return None
    axes = tuple(mine.shape[1:])
    if axes not in ((shape[1], 1), (1, shape[2])) or axes == shape[1:] or not theirs.is_floating_point():
        return None
    said = f"after numbers of user and candidate were multiplied ({sweep.current})"
    return Outer(own, user, own.mixed or Mixed(sweep.current, "multiplication", said))


def _piece_by_piece(node: Call, left: Form, right: Form) -> Form | None:
    """Two concatenations of the same parts: each part with its own."""
    if not (values.tiles(left) and values.tiles(right) and _alike(left, right)):
        return None
    pairs = list(zip(values.pieces(left), values.pieces(right), strict=False))
    if len(left.terms) != len(right.terms) or left.middle != right.middle:
        return None
    if any(a.start != b.start or a.atom.of_user is not b.atom.of_user for a, b in pairs):
        return None
    parts = [
        values.whole(
            node.target(_piece(left, a), _piece(right, b)),
            of_user=a.atom.of_user,
            mixed=a.atom.mixed or b.atom.mixed,
        )
        for a, b in pairs
    ]
    helped = left.helped | right.helped | {"pointwise"}
    return replace(values.joined(parts), middle=left.middle, helped=helped)


@rule(*(op for op in PAIRWISE if op not in _ALGEBRA))
def _pair(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return _broadcast(sweep, node, arguments)


def _broadcast(sweep: Sweep, node: Call, arguments: list[Any]) -> Row | None:
    """User and candidate meet number by number: with one request nothing is repeated."""
    data = [x for x in arguments if isinstance(x, Value)]
    # A mean over the rows, for one, has not all the rows that the user's would have to be spread to.
    has_rows = [x for x in data if not values.of_user(x) and (not isinstance(x, Row) or x.has_rows)]
    users = [x for x in data if isinstance(x, User)]
    if not has_rows or not users or any(isinstance(x, Count) for x in arguments):
        return None
    if any(user.tensor.ndim != rank(node) for user in users) or not sweep.has_rows(node):
        return None
    return Row(node.target(*(sweep.broadcast(x) for x in arguments)))


@rule(*LIKE, options=True)
def _like(sweep: Sweep, node: Call, arguments: list[Any]) -> User | None:
    """Zeros in the shape of a candidate's tensor are the same for all candidates."""
    shape = sizes(node)
    if not isinstance(arguments[0], Row | Form) or not sweep.has_rows(node) or count(shape[1:]) == 0:
        return None
    tensor = sweep.whole(arguments[0]) if isinstance(arguments[0], Row) else arguments[0].terms[0].atom.tensor
    if not numbers(shape[1:]) or node.kwargs.get("dtype") or node.kwargs.get("layout"):
        return None
    fill = {aten.zeros_like.default: 0, aten.ones_like.default: 1}.get(node.target)
    fill = arguments[1] if fill is None else fill
    return User(tensor.new_full((sweep.requests, *shape[1:]), fill)) if is_constant(fill) else None
