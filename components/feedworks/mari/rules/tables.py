"""MaRI (arXiv 2602.23105): lists of operations, and what rules ask of a node."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from feedworks.mari.calls import Call, sizes

aten = torch.ops.aten

# One tensor in, one out, number by number.
POINTWISE = (
    aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default,
    aten.elu.default, aten.leaky_relu.default, aten.exp.default, aten.log.default, aten.log1p.default,
    aten.abs.default, aten.neg.default, aten.sqrt.default, aten.rsqrt.default, aten.sign.default,
    aten.softplus.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.pow.Tensor_Scalar, aten.hardsigmoid.default, aten.hardswish.default, aten.reciprocal.default,
    aten.mish.default, aten.erf.default, aten.sin.default, aten.cos.default, aten.square.default,
    aten.selu.default, aten.celu.default, aten.relu6.default, aten.clip.default, aten.clamp_max.default,
    aten.expm1.default, aten.log2.default, aten.log10.default, aten.round.default, aten.floor.default,
)  # fmt: skip
# Two tensors that broadcast, number by number.
PAIRWISE = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default,
    aten.minimum.default, aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.gt.Tensor, aten.ge.Tensor,
    aten.le.Tensor, aten.where.self, aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.lt.Scalar,
    aten.ge.Scalar, aten.le.Scalar, aten.logical_not.default, aten.logical_and.default,
    aten.logical_or.default, aten.masked_fill.Scalar, aten.bitwise_not.default, aten.bitwise_and.Tensor,
    aten.bitwise_or.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar,
    aten.rsub.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf, aten.pow.Tensor_Tensor,
    aten.remainder.Scalar, aten.fmod.Scalar, aten.addcmul.default, aten.lerp.Scalar,
)  # fmt: skip
SAME = (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
LIKE = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)


def rank(node: Call) -> int:
    """Number of axes of a node's tensor."""
    return len(sizes(node))


def argument(node: Call, place: int, default: Any = None) -> Any:
    """A positional argument, or the default of one that was left out."""
    return node.args[place] if len(node.args) > place else default


def axes_of(node: Call, place: int) -> list[int]:
    """The axes, from 0 on, that an argument names; all if it names none."""
    count = len(sizes(node.args[0]))
    axes = argument(node, place, [])
    axes = [axes] if isinstance(axes, int) else list(axes or range(count))
    return [axis % count for axis in axes]


def touched(node: Call) -> int:
    """The axis that a slice, a split, a selection or a new axis of 1 is about."""
    place = 2 if node.target in (aten.split_with_sizes.default, aten.split.Tensor) else 1
    axis = argument(node, place, 0)
    count = len(sizes(node.args[0])) + (node.target == aten.unsqueeze.default)
    return int(axis % count)


def window(arguments: list[Any], width: int) -> tuple[int, int] | None:
    """First entry of a slice and the one after its last; None for one in steps or of computed size."""
    given = [*arguments, *[0, None, None, 1][len(arguments) - 1 :]]
    if given[4] != 1 or not all(isinstance(edge, int | None) for edge in given[2:4]):
        return None
    low, high, _ = slice(given[2], given[3]).indices(width)
    return low, high


def count(entries: Any) -> int:
    """The product of sizes that are numbers."""
    return prod(int(size) for size in entries)


def numbers(shape: Any) -> bool:
    """Whether all sizes are numbers, none of them depends on the rows."""
    return all(isinstance(size, int) for size in shape)
