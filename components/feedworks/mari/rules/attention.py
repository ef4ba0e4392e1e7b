"""MaRI (arXiv 2602.23105): attention of candidates to the user's keys and values, which are not repeated.

With one request all candidates ask the same keys, so their queries are rows of one product.

Shape legend: B rows, M queries of a candidate, S keys, K and N columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from feedworks.mari.calls import Call, sizes
from feedworks.mari.found import Site
from feedworks.mari.rules.tables import argument, axes_of, count, numbers, rank
from feedworks.mari.sweep import Sweep, rule, wrapped
from feedworks.mari.values import Form, Outer, Row, User, Value, of_user

aten = torch.ops.aten


@rule(aten.bmm.default)
def batched(sweep: Sweep, node: Call, arguments: list[Any]) -> Row | None:
    """A product of a candidate's matrices with the user's, or the other way round."""
    shapes = [sizes(argument) for argument in node.args[:2]]
    if len({len(shape) for shape in shapes}) != 1 or rank(node) < 3 or not sweep.options.cut:
        return None
    if any(shape[0] != sweep.row_symbol or not numbers(shape[1:]) for shape in shapes):
        return None
    if shapes[0][1:-2] != shapes[1][1:-2]:
        return None
    left, right = arguments
    user_left, user_right = _user(sweep, left), _user(sweep, right)
    if user_right is not None and _of_candidates(left):
        _note(sweep, node, shapes[0][-1], shapes[0][-2], shapes[1][-1])
        return Row(_against(sweep, sweep.whole(left), user_right))
    if user_left is not None and _of_candidates(right):
        _note(sweep, node, shapes[0][-1], shapes[1][-1], shapes[0][-2])
        turned = _against(sweep, sweep.whole(right).transpose(-1, -2), user_left.transpose(-1, -2))
        return Row(turned.transpose(-1, -2))
    return None


def _against(sweep: Sweep, own: Tensor, user: Tensor) -> Tensor:
    """`own (B, *batch, M, K)` times `user (R, *batch, K, N)`."""
    if not sweep.one_request:
        return torch.matmul(own, sweep.spread(user))
    product = torch.matmul(_together(own), user[0])
    return _apart(product, own.shape[0], own.shape[-2])


def _together(own: Tensor) -> Tensor:
    """`(B, *batch, M, K)` as `(*batch, B * M, K)`."""
    return own.movedim(0, -3).flatten(-3, -2)


def _apart(joined: Tensor, rows: Any, queries: int) -> Tensor:
    """`(*batch, B * M, N)` as `(B, *batch, M, N)`."""
    split = joined.reshape(*joined.shape[:-2], rows, queries, joined.shape[-1])
    return split.movedim(-3, 0)


@rule(aten.scaled_dot_product_attention.default, options=True)
def _attention(sweep: Sweep, node: Call, arguments: list[Any]) -> Row | None:
    query, key, value, mask, dropout, causal = [*arguments, None, 0.0, False][:6]
    if dropout or causal or node.kwargs.get("enable_gqa") or rank(node) < 3 or not sweep.options.cut:
        return None
    keys, held = _user(sweep, key), _user(sweep, value)
    if keys is None or held is None or not _of_candidates(query) or not sweep.has_rows(node.args[0]):
        return None
    shapes = [sizes(argument) for argument in node.args[:3]]
    if len({len(shape) for shape in shapes}) != 1 or len({shape[1:-2] for shape in shapes}) != 1:
        return None
    asked = sweep.whole(query)
    options = {name: given for name, given in node.kwargs.items() if name == "scale"}
    mine = None
    if mask is not None:
        mine = _user(sweep, mask)
        if mine is None or mine.ndim != len(shapes[0]) or mine.shape[-2] != 1:
            return None
    _note(sweep, node, shapes[0][-1], shapes[0][-2], shapes[1][-2])
    if not sweep.one_request:
        mine = None if mine is None else sweep.spread(mine)
        return Row(node.target(asked, sweep.spread(keys), sweep.spread(held), mine, **options))
    joined = _together(asked).unsqueeze(0)
    mine = mine if mine is None else mine.expand(*mine.shape[:-2], joined.shape[-2], mine.shape[-1])
    out = node.target(joined, keys, held, mine, **options)
    return Row(_apart(out[0], asked.shape[0], asked.shape[-2]))


@wrapped(Outer)
def _summed(sweep: Sweep, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Row | None:
    """A sum over `own * user` is a product, or the user alone is summed."""
    if node.target != aten.sum.dim_IntList or options or not isinstance(arguments[0], Outer):
        return None
    own, user = arguments[0].own.tensor, arguments[0].user.tensor
    keep = bool(argument(node, 2, False))
    axes = axes_of(node, 1)
    if axes not in ([1], [2]):
        return None
    if own.shape[axes[0]] == 1:
        # A candidate's number is the same for all that is summed: (B, 1, D) over S, or (B, S, 1) over D.
        total = own * sweep.spread(user.sum(dim=axes[0], keepdim=True))
    elif axes == [1]:
        total = _against(sweep, own.transpose(1, 2), user)
    else:
        total = _against(sweep, own, user.transpose(1, 2)).transpose(1, 2)
    _note(sweep, node, own.shape[axes[0]], 1, user.shape[3 - axes[0]])
    return Row(total if keep else total.squeeze(axes[0]))


def _user(sweep: Sweep, value: Any) -> Tensor | None:
    """A value of the user alone at R rows, those first."""
    if isinstance(value, Form) and value.of_user:
        value = sweep.held(value)
    plain = isinstance(value, User) and (value.axis, value.factor, value.single) == (0, 1, False)
    return value.tensor if plain else None


def _of_candidates(value: Any) -> bool:
    return isinstance(value, Value) and not of_user(value)


def _note(sweep: Sweep, node: Call, width: int, queries: int, keys: int) -> None:
    batch = count(size for size in sizes(node)[1:-2])
    sweep.site(Site(node.name, 0, width, keys, queries * batch, "attention", width=width))
