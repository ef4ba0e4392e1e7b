"""MaRI (arXiv 2602.23105): concatenations, slices and views that only say where numbers stand.

Shape legend: B rows, R requests, D columns (last axis).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from feedworks.mari import values
from feedworks.mari.calls import Call, Stand, raw, shaped, sizes
from feedworks.mari.rules.elementwise import is_constant, lazy, type_of
from feedworks.mari.rules.tables import argument, count, numbers, rank, touched, window
from feedworks.mari.sweep import VIEWS, Sweep, rule
from feedworks.mari.values import Blocks, Count, Folded, Form, Row, Tall, User, Value

aten = torch.ops.aten
_MADE = {
    aten.new_zeros.default: 1, aten.new_ones.default: 1, aten.new_full.default: 1, aten.zeros.default: 0,
    aten.ones.default: 0, aten.full.default: 0, aten.repeat.default: 1, aten.expand.default: 1,
}  # fmt: skip


@rule(aten.sym_size.int)
def _size(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    size = node.meta["val"]
    return size if isinstance(size, int) else Count(sweep.whole(arguments[0]).shape[arguments[1]])


@rule(operator.getitem)
def _item(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return arguments[0][arguments[1]]


@rule(aten.cat.default)
def _cat(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    parts, axis = arguments[0], argument(node, 1, 0) % rank(node)
    if len(parts) == 1:
        return parts[0]
    if axis == rank(node) - 1:
        forms = [sweep.form(part) for part in parts]
        same = _of_one_type([form for form in forms if form is not None])
        if same is not None and all(form is not None for form in forms):
            whole = values.joined(same)
            return whole if any(term.atom.of_user for term in whole.terms) or lazy(whole) else None
    return blocks_of(sweep, node, parts, axis)


def _of_one_type(forms: list[Form]) -> list[Form] | None:
    """Forms in the type of their concatenation; None where numbers would be rounded in another place."""
    kinds = {type_of(form) for form in forms}
    if len(kinds) < 2:
        return forms
    if None in kinds or any(not values.tiles(form) or _altered(form) for form in forms):
        return None
    wanted = reduce(torch.promote_types, [kind for kind in kinds if kind is not None])
    return [replace(form, terms=_atoms(form, lambda tensor: tensor.to(wanted))) for form in forms]


def _altered(form: Form) -> bool:
    scales = [term.scale for term in form.terms]
    return form.offset is not None or any(isinstance(scale, Tensor) or scale != 1.0 for scale in scales)


def blocks_of(sweep: Sweep, node: Call, parts: list[Any], axis: int) -> Blocks | None:
    """A concatenation along an axis, kept as its parts if they are of both sides."""
    if axis == 0 or not sweep.options.cut or not sweep.has_rows(node):
        return None
    if len({type_of(part) for part in parts if isinstance(part, Value)}) > 1:
        return None
    flat: list[tuple[Value, int]] = []
    for part, given in zip(parts, node.args[0], strict=True):
        if isinstance(part, Blocks) and part.axis == axis:
            flat += zip(part.parts, part.lengths, strict=True)
        elif _stands_apart(part):
            flat.append((part, int(sizes(given)[axis])))
        else:
            return None
    flat = _users_joined(flat, axis)
    if len({values.of_user(part) for part, _ in flat}) < 2:
        return None
    return Blocks(tuple(part for part, _ in flat), axis, tuple(length for _, length in flat), rank(node))


def _stands_apart(part: Any) -> bool:
    if isinstance(part, User):
        return (part.axis, part.factor, part.single) == (0, 1, False)
    return (isinstance(part, Row) and part.has_rows) or isinstance(part, Form)


def _users_joined(flat: list[tuple[Value, int]], axis: int) -> list[tuple[Value, int]]:
    """Neighbours of the user become one: they are short."""
    found: list[tuple[Value, int]] = []
    for part, length in flat:
        last = found[-1] if found else None
        if isinstance(part, User) and last is not None and isinstance(last[0], User):
            found[-1] = (User(torch.cat([last[0].tensor, part.tensor], dim=axis)), last[1] + length)
        else:
            found.append((part, length))
    return found


@rule(aten.stack.default)
def _stack(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    """A concatenation along a new axis."""
    axis = argument(node, 1, 0) % rank(node)
    users = {values.of_user(part) for part in arguments[0] if isinstance(part, Value)}
    if axis == 0 or len(users) < 2 or any(not isinstance(part, Value) for part in arguments[0]):
        return None
    parts, stands = [], []
    for number, (part, given) in enumerate(zip(arguments[0], node.args[0], strict=True)):
        shape = raw(given)
        higher = (*shape[:axis], 1, *shape[axis:])
        stand = Stand(f"{node.name}_p{number}", aten.unsqueeze.default, (given, axis), higher)
        parts.append(sweep.apply(stand, [part, axis]))
        stands.append(shaped(given, higher))
    cat = Stand(f"{node.name}_cat", aten.cat.default, (stands, axis), raw(node))
    return sweep.apply(cat, [parts, axis])


@rule(aten.slice.Tensor)
def _slice(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    if sizes(node) == sizes(node.args[0]):
        return value
    if not isinstance(value, Form) or touched(node) != rank(node) - 1:
        return None
    edges = window(arguments, value.width)
    return None if edges is None else _part(values.columns(value, *edges))


def _part(form: Form) -> Form | Row | User:
    """A slice of one tensor alone is that tensor, which other operations may look up."""
    if len(form.terms) != 1 or form.offset is not None or not values.tiles(form) or lazy(form):
        return form
    term = form.terms[0]
    tensor = values.tensor_of(term)
    return User(tensor) if term.atom.of_user else Row(tensor, mixed=term.atom.mixed)


@rule(aten.split_with_sizes.default, aten.split.Tensor)
def _split(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, given, axis = [*arguments, 0][:3]
    if not isinstance(value, Form) or axis % (len(value.middle) + 2) != len(value.middle) + 1:
        return None
    lengths = pieces_of(given, value.width)
    stops = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    windows = [(stop - size, stop) for stop, size in zip(stops, lengths, strict=True)]
    return [_part(values.columns(value, start, stop)) for start, stop in windows]


def pieces_of(given: int | list[int], total: int) -> list[int]:
    """Lengths of the parts of a split."""
    if not isinstance(given, int):
        return list(given)
    return [min(given, total - start) for start in range(0, total, given)]


@rule(aten.unsqueeze.default)
def _unsqueeze(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    axis = touched(node)
    form = arguments[0]
    if not isinstance(form, Form):
        return None
    if axis == rank(node) - 1 and not form.middle and form.mixed:
        return Tall(form)
    if not 0 < axis < rank(node) - 1:
        return None
    middle = (*form.middle[: axis - 1], 1, *form.middle[axis - 1 :])
    return replace(form, terms=_atoms(form, lambda tensor: tensor.unsqueeze(axis)), middle=middle)


@rule(aten.squeeze.dim)
def _squeeze(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    if sizes(node) == sizes(node.args[0]):
        return value
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    axis = arguments[1] % (rank(node) + 1)
    if isinstance(value, Form) and 0 < axis <= len(value.middle) and value.middle[axis - 1] == 1:
        middle = (*value.middle[: axis - 1], *value.middle[axis:])
        return replace(value, terms=_atoms(value, lambda tensor: tensor.squeeze(axis)), middle=middle)
    if not isinstance(value, User) or axis == value.axis or value.tensor.shape[axis] != 1:
        return None
    return replace(value, tensor=value.tensor.squeeze(axis), axis=value.axis - (axis < value.axis))


@rule(aten.expand.default, aten.broadcast_to.default)
def _expand(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    shape, before, value = sizes(node), sizes(node.args[0]), arguments[0]
    if len(shape) != len(before):
        return _made(sweep, node, arguments)
    if isinstance(value, User) and value.single and value.axis == 0:
        tiled = shape[0] == sweep.row_symbol
        if (shape[0] == 1 or tiled) and numbers(shape[1:]) and value.factor == 1:
            return User(value.tensor.expand(sweep.requests, *shape[1:]), single=not tiled)
        return None
    if isinstance(value, User) and _widens(sweep, node, value):
        return User(value.tensor.expand(-1, *shape[1:]))
    form = sweep.form(value)
    if form is None or shape[0] != before[0] or shape[-1] != before[-1] or not numbers(shape[1:]):
        return _made(sweep, node, arguments) if is_constant(value) else None
    return replace(form, middle=tuple(shape[1:-1]))


def _widens(sweep: Sweep, node: Call, user: User) -> bool:
    """Whether a user's tensor is expanded along its last axis, or is none that a form can hold."""
    shape, before = sizes(node), sizes(node.args[0])
    if (user.axis, user.factor) != (0, 1) or not sweep.has_rows(node) or shape[0] != before[0]:
        return False
    return shape[-1] != before[-1] or not user.tensor.is_floating_point()


@rule(aten.repeat.default, aten.tile.default)
def _repeat(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, shape = arguments[0], sizes(node)
    if isinstance(value, User) and value.single and (value.axis, value.factor) == (0, 1):
        before = sizes(node.args[0])
        if shape == (sweep.row_symbol, *before[1:]):
            return replace(value, single=False)
    return _made(sweep, node, arguments)


@rule(aten.repeat_interleave.self_int)
def _repeat_interleave(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    return _repeat(sweep, node, arguments) if isinstance(arguments[1], Count) else None


@rule(
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.zeros.default,
    aten.ones.default, aten.full.default, options=True,
)  # fmt: skip
def _made(sweep: Sweep, node: Call, arguments: list[Any]) -> User | None:
    """A constant that is made with one row per candidate: all rows are the same, so R are enough."""
    place = _MADE.get(node.target)
    if place is None or not sweep.has_rows(node) or not isinstance(arguments[place], list | tuple):
        return None
    first, *rest = arguments[place]
    if not isinstance(first, Count) or not all(isinstance(size, int) for size in rest):
        return None
    given = list(arguments)
    given[place] = [sweep.requests, *rest]
    if place == 1:
        like = arguments[0]
        repeats = node.target in (aten.repeat.default, aten.expand.default)
        if repeats and not (isinstance(like, Tensor) and (like.ndim < rank(node) or like.shape[0] == 1)):
            return None
        given[0] = like if repeats else _like(sweep, like)
    return User(node.target(*given, **node.kwargs))


def _like(sweep: Sweep, value: Any) -> Any:
    """A tensor of the type and place of a value, at no cost."""
    if isinstance(value, Form):
        return value.terms[0].atom.tensor
    return value.tensor if isinstance(value, Row | User) else sweep.whole(value)


@rule(*VIEWS, aten.reshape.default)
def _view(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    shape, before = sizes(node), sizes(node.args[0])
    if shape == before:
        return value
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    if isinstance(value, Form):
        return _form_view(value, before, shape)
    return user_view(sweep, value, node) if isinstance(value, User) else None


def _form_view(form: Form, before: tuple[Any, ...], shape: tuple[Any, ...]) -> Form | Folded | None:
    if shape[-1] != before[-1] or not numbers(shape[1:]):
        return None
    if count(form.middle) == 1 and shape[0] == before[0]:
        middle = tuple(shape[1:-1])
        terms = _atoms(form, lambda tensor: tensor.reshape(tensor.shape[0], *middle, tensor.shape[-1]))
        return replace(form, terms=terms, middle=middle)
    return Folded(form) if len(shape) == 2 and shape[0] == before[0] * count(form.middle) else None


def user_view(sweep: Sweep, user: User, node: Call) -> User | None:
    """The view of a user's tensor at R rows, if the rows stay together."""
    before, shape = sizes(node.args[0]), list(sizes(node))
    if user.single:
        if user.axis or user.factor != 1 or shape[:1] != [1] or not numbers(shape):
            return None
        return replace(user, tensor=user.tensor.reshape(sweep.requests, *shape[1:]))
    rows = _row_symbol(before[user.axis])
    places = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if rows is None or len(places) != 1 or not numbers(before[: user.axis]):
        return None
    axis = places[0]
    factor = shape[axis] / rows
    if not factor.is_Integer or count(before[: user.axis]) != count(shape[:axis]):
        return None
    shape[axis] = sweep.requests * int(factor)
    return User(user.tensor.reshape(shape), axis, int(factor))


def _row_symbol(size: Any) -> Any:
    symbols = [] if isinstance(size, int) else list(size.free_symbols)
    return symbols[0] if len(symbols) == 1 else None


@rule(aten.permute.default)
def _permute(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    value, order = arguments
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    if not isinstance(value, User):
        return None
    order = [axis % value.tensor.ndim for axis in order]
    return replace(value, tensor=value.tensor.permute(order), axis=order.index(value.axis))


@rule(aten.transpose.int)
def _transpose(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    order = list(range(rank(node)))
    one, other = (axis % len(order) for axis in arguments[1:])
    order[one], order[other] = order[other], order[one]
    return _permute(sweep, node, [arguments[0], order])


def _atoms(form: Form, change: Callable[[Tensor], Tensor]) -> tuple[values.Term, ...]:
    made: dict[int, values.Atom] = {}
    terms = []
    for term in form.terms:
        if id(term.atom.tensor) not in made:
            made[id(term.atom.tensor)] = replace(term.atom, tensor=change(term.atom.tensor))
        terms.append(replace(term, atom=made[id(term.atom.tensor)]))
    return tuple(terms)
