"""MaRI (arXiv 2602.23105): concatenations along fields or positions, done part by part.

Shape legend: B rows, F fields, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from feedworks.mari import values
from feedworks.mari.calls import Call, Stand, leaves_of, raw, shaped, sizes
from feedworks.mari.rules.layout import pieces_of
from feedworks.mari.rules.sums import total_of
from feedworks.mari.rules.tables import (
    PAIRWISE,
    POINTWISE,
    SAME,
    argument,
    axes_of,
    count,
    numbers,
    rank,
    touched,
    window,
)
from feedworks.mari.sweep import VIEWS, Sweep, wrapped
from feedworks.mari.values import Blocks, Form, Row, User, Value

aten = torch.ops.aten
_ALONE = (*POINTWISE, *SAME, *PAIRWISE, aten._to_copy.default)
_REDUCED = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)
_SOFT = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int)


@wrapped(Blocks)
def _on_blocks(sweep: Sweep, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Any:
    first = next(x for x in leaves_of(arguments) if isinstance(x, Blocks))
    if any(isinstance(x, Blocks) and not _alike(x, first) for x in leaves_of(arguments)):
        return None
    if node.target in _ALONE:
        return _each(sweep, node, arguments, first, first.axis, options)
    if options or not isinstance(arguments[0], Blocks | list):
        return _embedded(sweep, node, arguments, first, options)
    for targets, handler in _HANDLERS:
        if node.target in targets:
            return handler(sweep, node, arguments, first)
    return None


def _with(shape: tuple[Any, ...], axis: int, size: int) -> tuple[Any, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _alike(one: Blocks, other: Blocks) -> bool:
    return (one.axis, one.lengths, one.rank) == (other.axis, other.lengths, other.rank)


def _each(
    sweep: Sweep,
    node: Call,
    arguments: Sequence[Any],
    like: Blocks,
    axis: int,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The operation on each part; the result is a concatenation along `axis`."""
    parts = []
    start = 0
    for number, length in enumerate(like.lengths):
        found = [_part_of(x, arg, like, number, start) for x, arg in zip(arguments, node.args, strict=True)]
        given = [part for part in found if part is not None]
        if len(given) < len(found):
            return None
        stands = [stand for _, stand in given]
        shape = raw(node)
        shape = _with(shape, axis, length)
        stand = Stand(f"{node.name}_p{number}", node.target, stands, shape, node.kwargs)
        parts.append(sweep.apply(stand, [value for value, _ in given], options))
        start += length
    return _rejoined(sweep, parts, axis, like.lengths, rank(node))


def _part_of(value: Any, given: Any, like: Blocks, number: int, start: int) -> tuple[Any, Any] | None:
    """What of an argument meets a part, and a stand-in for its node."""
    length = like.lengths[number]
    if isinstance(value, Blocks):
        shape = raw(given)
        return value.parts[number], shaped(given, _with(shape, like.axis, length))
    if isinstance(value, Tensor):
        place = value.ndim - (like.rank - like.axis)
        if place >= 0 and value.shape[place] == sum(like.lengths) and value.shape[place] != 1:
            value = value.narrow(place, start, length)
            return value, shaped(given, tuple(value.shape))
        return (value, given) if place < 0 or value.shape[place] == 1 else None
    if isinstance(value, Value):
        return (value, given) if len(sizes(given)) == like.rank and sizes(given)[like.axis] == 1 else None
    return value, given


def _rejoined(sweep: Sweep, parts: list[Any], axis: int, lengths: tuple[int, ...], ranks: int) -> Any:
    if any(not isinstance(part, Value) for part in parts):
        return None
    if axis == ranks - 1:
        forms = [sweep.form(part) for part in parts]
        if all(form is not None for form in forms):
            return values.joined([form for form in forms if form is not None])
    return Blocks(tuple(parts), axis, lengths, ranks)


def _one_argument(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks, axis: int) -> Any:
    rest = list(arguments[1:])
    if any(isinstance(x, Value) for x in leaves_of(rest)):
        return None
    parts = []
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        before, after = raw(node.args[0]), raw(node)
        inner = shaped(node.args[0], _with(before, blocks.axis, length))
        shape = _with(after, axis, length)
        stand = Stand(f"{node.name}_p{number}", node.target, (inner, *node.args[1:]), shape)
        parts.append(sweep.apply(stand, [part, *rest]))
    return _rejoined(sweep, parts, axis, blocks.lengths, rank(node))


def _soft(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    inside = blocks.axis not in axes_of(node, 1)
    return _one_argument(sweep, node, arguments, blocks, blocks.axis) if inside else None


def _normed(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    inside = blocks.axis < blocks.rank - len(node.args[1])
    return _one_argument(sweep, node, arguments, blocks, blocks.axis) if inside else None


def _linear(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    return (
        _one_argument(sweep, node, arguments, blocks, blocks.axis) if blocks.axis < blocks.rank - 1 else None
    )


def _matmul(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    weight = arguments[1]
    plain = isinstance(weight, Tensor) and weight.ndim == 2 and blocks.axis < blocks.rank - 1
    return _one_argument(sweep, node, arguments, blocks, blocks.axis) if plain else None


def _reduced(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    axes = axes_of(node, 1)
    keep = bool(argument(node, 2, False))
    if 0 in axes:
        return None
    if blocks.axis not in axes:
        before = 0 if keep else sum(axis < blocks.axis for axis in axes)
        return _one_argument(sweep, node, arguments, blocks, blocks.axis - before)
    if node.target not in (aten.sum.dim_IntList, aten.mean.dim) or not sweep.has_rows(node):
        return None
    parts = []
    for number, (part, length) in enumerate(_by_side(sweep, blocks)):
        shape = raw(node.args[0])
        inner = shaped(node.args[0], _with(shape, blocks.axis, length))
        stand = Stand(f"{node.name}_p{number}", aten.sum.dim_IntList, (inner, axes, keep), raw(node))
        parts.append((sweep.apply(stand, [part, axes, keep]), length))
    total = total_of(sweep, node, parts)
    if node.target == aten.sum.dim_IntList:
        return total
    size = count(sizes(node.args[0])[axis] for axis in axes)
    if isinstance(total, Form):
        return values.scaled(total, 1.0 / size)
    return Row(total.tensor / size)


def _by_side(sweep: Sweep, blocks: Blocks) -> list[tuple[Value, int]]:
    """Parts of one side together: their order does not matter to a sum."""
    pairs = list(zip(blocks.parts, blocks.lengths, strict=True))
    users = [(part, length) for part, length in pairs if values.of_user(part)]
    others = [(part, length) for part, length in pairs if not values.of_user(part)]
    found: list[tuple[Value, int]] = []
    if len(users) > 1 and all(isinstance(part, User | Form) for part, _ in users):
        tensors = [sweep.at_requests(part) for part, _ in users]
        users = [(User(torch.cat(tensors, dim=blocks.axis)), sum(length for _, length in users))]
    if len(others) > 1 and all(isinstance(part, Row) for part, _ in others):
        mixed = next((part.mixed for part, _ in others if isinstance(part, Row) and part.mixed), None)
        tensors = [sweep.whole(part) for part, _ in others]
        together = Row(torch.cat(tensors, dim=blocks.axis), mixed=mixed)
        others = [(together, sum(length for _, length in others))]
    found += users + others
    return found


def _sliced(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    axis = touched(node)
    if sizes(node) == sizes(node.args[0]):
        return blocks
    if axis != blocks.axis:
        return _one_argument(sweep, node, arguments, blocks, blocks.axis)
    edges = window(arguments, sum(blocks.lengths))
    return None if edges is None else _cut(sweep, node, blocks, *edges)


def _cut(sweep: Sweep, node: Call, blocks: Blocks, low: int, high: int) -> Any:
    """Fields `low` to before `high`."""
    parts, lengths = [], []
    start = 0
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        first, last = max(low - start, 0), min(high - start, length)
        if first < last:
            parts.append(_narrowed(sweep, node, blocks, (number, part, length), (first, last)))
            lengths.append(last - first)
        start += length
    if len(parts) == 1:
        return parts[0]
    if all(values.of_user(part) for part in parts) or not any(values.of_user(part) for part in parts):
        return None
    return Blocks(tuple(parts), blocks.axis, tuple(lengths), blocks.rank)


def _narrowed(
    sweep: Sweep, node: Call, blocks: Blocks, part: tuple[int, Value, int], window: tuple[int, int]
) -> Value:
    number, value, length = part
    first, last = window
    if (first, last) == (0, length):
        return value
    shape = raw(node.args[0])
    inner, outer = [
        (*shape[: blocks.axis], size, *shape[blocks.axis + 1 :]) for size in (length, last - first)
    ]
    given = shaped(node.args[0], inner)
    stand = Stand(
        f"{node.name}_p{number}_{first}", aten.slice.Tensor, (given, blocks.axis, first, last), outer
    )
    found: Value = sweep.apply(stand, [value, blocks.axis, first, last])
    return found


def _selected(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    axis, index = touched(node), arguments[2]
    if axis != blocks.axis:
        return (
            _one_argument(sweep, node, arguments, blocks, blocks.axis - (axis < blocks.axis))
            if axis
            else None
        )
    index %= sum(blocks.lengths)
    start = 0
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        if index < start + length:
            shape = raw(node.args[0])
            given = shaped(node.args[0], _with(shape, axis, length))
            stand = Stand(f"{node.name}_p{number}", aten.select.int, (given, axis, index - start), raw(node))
            return sweep.apply(stand, [part, axis, index - start])
        start += length
    return None


def _split(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    if touched(node) != blocks.axis:
        return None
    start, found = 0, []
    for length in pieces_of(arguments[1], sum(blocks.lengths)):
        part = _cut(sweep, node, blocks, start, start + length)
        if part is None:
            whole = sweep.whole(blocks).narrow(blocks.axis, start, length)
            part = Row(whole)
        found.append(part)
        start += length
    return found


def _unsqueezed(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    axis = touched(node)
    return (
        _one_argument(sweep, node, arguments, blocks, blocks.axis + (axis <= blocks.axis)) if axis else None
    )


def _squeezed(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    axis = arguments[1] % blocks.rank
    if axis in (0, blocks.axis) or rank(node) == blocks.rank:
        return None
    return _one_argument(sweep, node, arguments, blocks, blocks.axis - (axis < blocks.axis))


def _transposed(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    order = list(range(blocks.rank))
    if node.target == aten.permute.default:
        order = [axis % blocks.rank for axis in arguments[1]]
    else:
        one, other = (axis % blocks.rank for axis in arguments[1:])
        order[one], order[other] = order[other], order[one]
    if order[0] != 0:
        return None
    return _one_argument(sweep, node, arguments, blocks, order.index(blocks.axis))


def _expanded(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    """An expansion of other axes than that of the fields."""
    shape, before = sizes(node), sizes(node.args[0])
    if len(shape) != len(before) or shape[0] != before[0] or shape[blocks.axis] != before[blocks.axis]:
        return None
    parts = []
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        inner, outer = [_with(raw(each), blocks.axis, length) for each in (node.args[0], node)]
        to = [-1, *outer[1:]]
        stand = Stand(f"{node.name}_p{number}", node.target, (shaped(node.args[0], inner), to), outer)
        parts.append(sweep.apply(stand, [part, to]))
    return _rejoined(sweep, parts, blocks.axis, blocks.lengths, blocks.rank)


def _viewed(sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks) -> Any:
    """A flattening of the fields into the last axis, or a view of what comes after them."""
    shape, before, axis = raw(node), raw(node.args[0]), blocks.axis
    if sizes(node) == sizes(node.args[0]):
        return blocks
    if not sweep.has_rows(node) or not numbers(sizes(node.args[0])[1:]):
        return None
    if sizes(node)[:axis] != sizes(node.args[0])[:axis]:
        return None
    flat = len(shape) == axis + 1
    if not flat and sizes(node)[: axis + 1] != sizes(node.args[0])[: axis + 1]:
        return None
    rest = count(before[axis + 1 :])
    parts, lengths = [], []
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        inner = _with(before, axis, length)
        outer = (*shape[:axis], length * rest) if flat else _with(shape, axis, length)
        # The rows are told by the tensor itself.
        to = [-1, *outer[1:]]
        given = shaped(node.args[0], inner)
        stand = Stand(f"{node.name}_p{number}", aten.reshape.default, (given, to), outer)
        parts.append(sweep.apply(stand, [part, to]))
        lengths.append(int(outer[axis]))
    found = _rejoined(sweep, parts, axis, tuple(lengths), len(shape))
    return values.helped_by(found, "flatten") if isinstance(found, Form) else found


def _embedded(
    sweep: Sweep, node: Call, arguments: list[Any], blocks: Blocks, options: Mapping[str, Any]
) -> Any:
    """A look-up of numbers that stand apart."""
    if node.target != aten.embedding.default or not isinstance(arguments[1], Blocks) or options:
        return None
    if not isinstance(arguments[0], Tensor):
        return None
    parts = []
    for number, (part, length) in enumerate(zip(blocks.parts, blocks.lengths, strict=True)):
        inner, outer = [_with(raw(each), blocks.axis, length) for each in (node.args[1], node)]
        given = (node.args[0], shaped(node.args[1], inner), *node.args[2:])
        stand = Stand(f"{node.name}_p{number}", node.target, given, outer)
        parts.append(sweep.apply(stand, [arguments[0], part, *arguments[2:]]))
    return _rejoined(sweep, parts, blocks.axis, blocks.lengths, rank(node))


_HANDLERS = (
    (_SOFT, _soft),
    ((aten.layer_norm.default, aten.rms_norm.default), _normed),
    ((aten.linear.default,), _linear),
    ((aten.matmul.default,), _matmul),
    (_REDUCED, _reduced),
    ((aten.slice.Tensor,), _sliced),
    ((aten.select.int,), _selected),
    ((aten.split_with_sizes.default, aten.split.Tensor), _split),
    ((aten.unsqueeze.default,), _unsqueezed),
    ((aten.squeeze.dim,), _squeezed),
    ((aten.permute.default, aten.transpose.int), _transposed),
    ((aten.expand.default,), _expanded),
    ((*VIEWS, aten.reshape.default), _viewed),
)
