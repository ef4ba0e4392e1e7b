"""MaRI (arXiv 2602.23105): operations that look at one row at a time: R rows are enough for the user's.

A check gets the node, the axis of the rows in what it is given, and the user's values among it.
"""

from __future__ import annotations

from typing import Any

import torch

from feedworks.mari.calls import Call, sizes
from feedworks.mari.rules.tables import LIKE, PAIRWISE, POINTWISE, SAME, argument, axes_of, rank, touched
from feedworks.mari.sweep import ROW_BY_ROW
from feedworks.mari.values import User

aten = torch.ops.aten


def _equal_ranks(node: Call, axis: int, held: list[User]) -> bool:
    return len({user.tensor.ndim for user in held}) == 1 and held[0].tensor.ndim == rank(node)


def _not_the_rows(place: int) -> Any:
    def check(node: Call, axis: int, held: list[User]) -> bool:
        return axis not in axes_of(node, place)

    return check


def _keeps_axis(place: int) -> Any:
    """Reductions whose result keeps the place of the rows: the reduced axes come after them."""

    def check(node: Call, axis: int, held: list[User]) -> bool:
        return all(other > axis for other in axes_of(node, place))

    return check


def _after(node: Call, axis: int, held: list[User]) -> bool:
    return touched(node) > axis


def _one(node: Call, axis: int, held: list[User]) -> bool:
    return len(held) == 1


def _alike(node: Call, axis: int, held: list[User]) -> bool:
    return axis == 0 and len({user.tensor.ndim for user in held}) == 1 and held[0].tensor.ndim >= 3


def _cat(node: Call, axis: int, held: list[User]) -> bool:
    ranks = {user.tensor.ndim for user in held}
    return (
        ranks == {rank(node)}
        and len(held) == len(node.args[0])
        and argument(node, 1, 0) % rank(node) > axis
        and len({user.single for user in held}) == 1
    )


def _stack(node: Call, axis: int, held: list[User]) -> bool:
    return (
        len(held) == len(node.args[0])
        and argument(node, 1, 0) % rank(node) > axis
        and len({user.single for user in held}) == 1
    )


def _norm(node: Call, axis: int, held: list[User]) -> bool:
    return len(held) == 1 and axis < held[0].tensor.ndim - len(node.args[1])


def _linear(node: Call, axis: int, held: list[User]) -> bool:
    """Whether the user's value is the data of a product, and its rows are not its columns."""
    place = 1 if node.target == aten.addmm.default else 0
    return (
        len(held) == 1
        and len(sizes(node.args[place])) == held[0].tensor.ndim
        and axis < held[0].tensor.ndim - 1
    )


def _matmul(node: Call, axis: int, held: list[User]) -> bool:
    if len(held) == 2:
        return _alike(node, axis, held)
    left, right = (sizes(argument) for argument in node.args[:2])
    if len(left) == held[0].tensor.ndim and not any(not isinstance(size, int) for size in right):
        return axis < len(left) - 1 and len(right) == 2
    return False


def _repeat(node: Call, axis: int, held: list[User]) -> bool:
    given = node.args[1]
    return len(given) == held[0].tensor.ndim and given[axis] == 1


for _op in (*POINTWISE, *PAIRWISE, *SAME, *LIKE, aten._to_copy.default):
    ROW_BY_ROW[_op] = _equal_ranks
for _op in (
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default, aten.flip.default,
    aten.glu.default,
):  # fmt: skip
    ROW_BY_ROW[_op] = _not_the_rows(1)
for _op in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.var.correction):
    ROW_BY_ROW[_op] = _keeps_axis(1)
for _op in (aten.max.dim, aten.min.dim, aten.argmax.default, aten.std.dim, aten.logsumexp.default):
    ROW_BY_ROW[_op] = _keeps_axis(1)
for _op in (
    aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.split_with_sizes.default,
    aten.split.Tensor, aten.unbind.int,
):  # fmt: skip
    ROW_BY_ROW[_op] = _after
ROW_BY_ROW[aten.repeat_interleave.self_int] = lambda node, axis, held: (
    isinstance(argument(node, 1), int)
    and argument(node, 2) is not None
    and argument(node, 2) % rank(node) > axis
)
ROW_BY_ROW[aten.linalg_vector_norm.default] = _keeps_axis(2)
ROW_BY_ROW[aten.cat.default] = _cat
ROW_BY_ROW[aten.stack.default] = _stack
ROW_BY_ROW[aten.embedding.default] = _one
ROW_BY_ROW[aten.one_hot.default] = _one
ROW_BY_ROW[aten.prelu.default] = lambda node, axis, held: len(held) == 1 and axis == 0
ROW_BY_ROW[aten.layer_norm.default] = _norm
ROW_BY_ROW[aten.rms_norm.default] = _norm
ROW_BY_ROW[aten.group_norm.default] = lambda node, axis, held: len(held) == 1 and axis == 0
ROW_BY_ROW[aten._native_batch_norm_legit_no_training.default] = lambda node, axis, held: (
    len(held) == 1 and axis == 0
)
ROW_BY_ROW[aten.linear.default] = _linear
ROW_BY_ROW[aten.addmm.default] = _linear
ROW_BY_ROW[aten.mm.default] = _linear
ROW_BY_ROW[aten.repeat.default] = _repeat
ROW_BY_ROW[aten.bmm.default] = lambda node, axis, held: axis == 0 and len(held) == 2
ROW_BY_ROW[aten.matmul.default] = _matmul
ROW_BY_ROW[aten.scaled_dot_product_attention.default] = _alike
