"""MaRI (arXiv 2602.23105): why a product could not be cut, in the words of a ranking engineer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from feedworks.mari.calls import Call, leaves_of, sizes
from feedworks.mari.found import Mixed, Refusal, Why
from feedworks.mari.values import (
    Blocks,
    Folded,
    Form,
    Normed,
    Outer,
    Row,
    Tall,
    User,
    Value,
    of_user,
    own_columns,
    whole_columns,
)

aten = torch.ops.aten
PRODUCTS = {
    aten.linear.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.matmul.default,
    aten.baddbmm.default, aten.einsum.default, aten.tensordot.default,
}  # fmt: skip
_TWO = {"mul", "div", "outer", "addcmul"}
_COMPARED = {"maximum", "minimum", "where", "eq", "ne", "lt", "gt", "ge", "le", "logical_and", "masked_fill"}
_ATTENTION = {"scaled_dot_product_attention", "bmm", "matmul", "mm", "einsum", "baddbmm"}
# Place of the axis or axes among the arguments, of operations in which entries along an axis meet.
_AXES = {
    "softmax": 1, "log_softmax": 1, "cumsum": 1, "sum": 1, "mean": 1, "amax": 1, "amin": 1, "max": 1,
    "min": 1, "var": 1, "std": 1, "argmax": 1, "sort": 1, "topk": 2, "flip": 1,
    "linalg_vector_norm": 2, "cumprod": 1,
    "prod": 1, "logsumexp": 1,
}  # fmt: skip
_NORMS = {"layer_norm", "group_norm", "rms_norm", "native_layer_norm", "cosine_similarity", "linear", "glu"}


def refusal(node: Call, arguments: Sequence[Any]) -> Refusal | None:
    """Why a product that was not cut stays whole; None if what it reads has not both user and candidate.

    Args:
        node: of the exported graph, one of `PRODUCTS`.
        arguments: the values that it was given.
    """
    data = [x for x in leaves_of(list(arguments)) if isinstance(x, Value)]
    found = [mixed for mixed in map(mixed_of, data) if mixed is not None]
    if not found:
        return None
    if len(data) > 1 and node.target not in (aten.addmm.default, aten.baddbmm.default):
        name = "both factors are" if node.target not in (aten.linear.default,) else "its weight is"
        return Refusal(node.name, f"{name} computed from the inputs", "weight", node.name)
    first = found[0]
    if first.node:
        return Refusal(node.name, first.reason, first.kind, first.node)
    form = next((x for x in data if isinstance(x, Form)), None)
    if form is not None and own_columns(form) >= whole_columns(form):
        said = (
            f"reads sums of numbers of user and candidate: cut by side, {own_columns(form)} columns would be "
            f"multiplied per candidate instead of {whole_columns(form)}"
        )
        return Refusal(node.name, said, "cost", node.name)
    return Refusal(node.name, f"no rule for a {operation(node)} of this shape", "shape", node.name)


def mixed_of(value: Any) -> Mixed | None:
    """Where user and candidate came together in a value; with an empty node if they still stand apart."""
    if isinstance(value, Row):
        return value.mixed
    if isinstance(value, Outer):
        return value.mixed
    if isinstance(value, Form):
        inside = next((t.atom.mixed for t in value.terms if t.atom.mixed is not None), None)
        return inside or (Mixed("", "shape", "") if value.mixed else None)
    if isinstance(value, Normed):
        return mixed_of(value.form)
    if isinstance(value, Blocks):
        sides = {of_user(part) for part in value.parts}
        parts = [mixed_of(part) for part in value.parts]
        return Mixed("", "shape", "") if len(sides) == 2 else next((m for m in parts if m), None)
    if isinstance(value, Tall):
        return mixed_of(value.value)
    return mixed_of(value.form) if isinstance(value, Folded) else None


def mixture(node: Call, leaves: Sequence[Any], name: str) -> Mixed | None:
    """Where the user came into a whole tensor that an operation made of values.

    Args:
        node: the operation, or a stand-in for it.
        leaves: the values.
        name: of the operation in the exported graph.
    """
    data = [x for x in leaves if isinstance(x, Value)]
    already = [mixed for mixed in map(mixed_of, data) if mixed is not None and mixed.node]
    if already:
        return already[0]
    users = any(isinstance(x, User) or of_user(x) for x in data)
    together = any(mixed_of(x) is not None for x in data)
    if together or (users and any(not of_user(x) for x in data)):
        return _reason(node, name)
    if users and _axis_of_rows(node):
        return _met_over(node, name, "rows")
    if not users:
        return None
    return Mixed(name, "no rule", f"no rule keeps {operation(node)} at one row per request ({name})")


def operation(node: Call) -> str:
    """Name of a node's operation without library and overload."""
    return str(node.target).removeprefix("aten.").split(".")[0].lstrip("_")


def _reason(node: Call, name: str) -> Mixed:
    kind = operation(node)
    at = name if name.startswith(kind) else f"{kind} at {name}"
    if kind in _AXES and _axis_of_rows(node):
        return _met_over(node, name, "rows")
    if kind in _AXES or kind in _NORMS:
        return _met_over(node, name, "columns")
    for operations, why, said in _SAID:
        if kind in operations:
            return Mixed(name, why, f"{said} ({at})")
    return Mixed(name, "no rule", f"no rule keeps user and candidate apart through {at}")


def _met_over(node: Call, name: str, over: Why) -> Mixed:
    kind = operation(node)
    if over == "rows":
        return Mixed(name, "rows", f"depends on several rows ({kind} over the rows at {name})")
    return Mixed(name, "columns", f"columns of user and candidate meet in {kind} over the columns ({name})")


def _axis_of_rows(node: Call) -> bool:
    """Whether an operation along axes, such as a sum, is along that of the rows."""
    place = _AXES.get(operation(node))
    if place is None:
        return False
    rank = len(sizes(node.args[0]))
    axes = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    if not isinstance(axes, int | list | tuple | None):
        return False  # the larger of two tensors, number by number
    if axes is None and operation(node) in ("sort", "topk"):
        axes = -1
    axes = [axes] if isinstance(axes, int) else list(axes or range(rank))
    return any(not isinstance(sizes(node.args[0])[axis], int) for axis in axes)


_NON_LINEAR = {
    "relu", "sigmoid", "tanh", "gelu", "silu", "elu", "leaky_relu", "exp", "log", "log1p", "abs", "sqrt",
    "rsqrt", "sign", "softplus", "hardtanh", "clamp", "clamp_min", "clamp_max", "pow", "hardsigmoid",
    "hardswish",
    "reciprocal", "mish", "erf", "sin", "cos", "square", "prelu", "selu", "celu",
    "relu6", "logit", "round", "floor",
}  # fmt: skip
_SAID: tuple[tuple[set[str], Why, str], ...] = (
    (_TWO, "multiplication", "after numbers of user and candidate were multiplied"),
    (_COMPARED, "non-linearity", "after numbers of user and candidate were compared"),
    (_ATTENTION, "attention", "after attention between user and candidate"),
    ({"add", "sub"}, "shape", "after user and candidate were added in different shapes"),
    (_NON_LINEAR, "non-linearity", "after a non-linearity over numbers of user and candidate together"),
)
