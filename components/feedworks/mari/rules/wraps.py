"""MaRI (arXiv 2602.23105): a column vector `(B, D, 1)` and sequences folded into rows, as what they are.

Operations on them are done on the form inside, by the rules for forms.

Shape legend: B rows, T positions, D columns, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from feedworks.mari.calls import Call, Stand, raw, shaped, sizes
from feedworks.mari.rules import blocks as _blocks  # noqa: F401 - fills the tables of the sweep
from feedworks.mari.rules.linear import batch_normed, times
from feedworks.mari.rules.tables import PAIRWISE, POINTWISE, SAME, argument, numbers, rank
from feedworks.mari.sweep import VIEWS, Sweep, wrapped
from feedworks.mari.values import Folded, Form, Row, Tall, Value

aten = torch.ops.aten
_ALONE = (*POINTWISE, *SAME)


@wrapped(Tall)
def _tall(sweep: Sweep, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Any:
    if options:
        return None
    if node.target in (aten.squeeze.dim, aten.select.int, aten.squeeze.default):
        return _lowered(node, arguments)
    if node.target in (aten.matmul.default, aten.tensordot.default):
        return _tall_product(sweep, node, arguments)
    if node.target in (*_ALONE, *PAIRWISE) and rank(node) == 3:
        low = [_low(x, given) for x, given in zip(arguments, node.args, strict=True)]
        if any(x is None for x in low):
            return None
        stands = [_low_stand(given) for given in node.args]
        stand = Stand(f"{node.name}_low", node.target, stands, raw(node)[:-1])
        result = sweep.apply(stand, low)
        return Tall(result) if isinstance(result, Value) else None
    return None


def _lowered(node: Call, arguments: list[Any]) -> Any:
    value = arguments[0]
    last = len(sizes(node.args[0])) - 1
    if sizes(node) != sizes(node.args[0])[:-1] or not isinstance(value, Tall):
        return None
    axis = argument(node, 1, last) % (last + 1)
    return value.value if axis == last else None


def _low(value: Any, given: Any) -> Any:
    """A value of `(B, D, 1)` without its last axis, if it is one or broadcasts to it."""
    if isinstance(value, Tall):
        return value.value
    if isinstance(value, int | float):
        return value
    if isinstance(value, Tensor):
        if value.ndim and value.shape[-1] != 1:
            return None
        return value.squeeze(-1) if value.ndim else value
    if isinstance(value, Row) and sizes(given)[-1:] == (1,) and len(sizes(given)) == 3:
        return Row(value.tensor.squeeze(-1), value.has_rows, value.mixed)
    return None


def _low_stand(given: Any) -> Any:
    if not hasattr(given, "meta"):
        return given
    shape = raw(given)
    return shaped(given, shape[:-1])


def _tall_product(sweep: Sweep, node: Call, arguments: list[Any]) -> Any:
    """A weight times a column vector `(B, D, 1)`: `W x`, or `tensordot` over D."""
    left, right = arguments[:2]
    if node.target == aten.matmul.default:
        if not isinstance(left, Tensor) or left.ndim != 2 or not isinstance(right, Tall):
            return None
        product = times(sweep, node, right.value, left, None)
        return None if product is None else Tall(product)
    one, other = arguments[2:4]
    if not isinstance(left, Tall) or not isinstance(right, Tensor) or right.ndim != 2:
        return None
    if list(one) != [1] or len(other) != 1:
        return None
    product = times(sweep, node, left.value, right.t() if other[0] % 2 == 0 else right, None)
    if product is None:
        return None
    low = shaped(node, (raw(node)[0], raw(node)[2]))
    stand = Stand(f"{node.name}_high", aten.unsqueeze.default, (low, 1), raw(node))
    return sweep.apply(stand, [product, 1])


@wrapped(Folded)
def _folded(sweep: Sweep, node: Call, arguments: list[Any], options: Mapping[str, Any]) -> Any:
    folded = next(x for x in arguments if isinstance(x, Folded)) if _has(arguments) else None
    if folded is None or options or sum(isinstance(x, Value) for x in arguments) != 1:
        return None
    form = folded.form
    if node.target == aten._native_batch_norm_legit_no_training.default:
        return [Folded(batch_normed(form, arguments)), None, None]
    if node.target in VIEWS:
        return _unfolded(sweep, node, folded)
    if node.target not in (
        *_ALONE, *PAIRWISE, aten.linear.default, aten.mm.default, aten.addmm.default, aten.prelu.default,
    ):  # fmt: skip
        return None
    stands = [_high_stand(sweep, x, given, form) for x, given in zip(arguments, node.args, strict=True)]
    shape = (sweep.raw_rows, *form.middle, raw(node)[-1])
    stand = Stand(f"{node.name}_high", node.target, stands, shape)
    result = sweep.apply(stand, [form if x is folded else x for x in arguments])
    if isinstance(result, Form):
        return Folded(result)
    return Row(result.tensor.flatten(0, -2), mixed=result.mixed) if isinstance(result, Row) else None


def _has(arguments: list[Any]) -> bool:
    return any(isinstance(x, Folded) for x in arguments)


def _high_stand(sweep: Sweep, value: Any, given: Any, form: Form) -> Any:
    if not isinstance(value, Folded):
        return given
    return shaped(given, (sweep.raw_rows, *form.middle, value.form.width))


def _unfolded(sweep: Sweep, node: Call, folded: Folded) -> Any:
    """A view of `(B * T, D)` as `(B, T, D)`."""
    form = folded.form
    shape = sizes(node)
    if shape == (sweep.row_symbol, *form.middle, form.width):
        return form
    if not numbers(shape[1:]):
        return None
    high = shaped(node, (sweep.raw_rows, *form.middle, form.width))
    to = [-1, *raw(node)[1:]]
    stand = Stand(f"{node.name}_high", aten.reshape.default, (high, to), raw(node))
    return sweep.apply(stand, [form, to])
