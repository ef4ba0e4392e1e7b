"""MaRI (arXiv 2602.23105): bags of embeddings of the user, summed once per request.

Shape legend: B rows, R requests, L words of a bag, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feedworks.mari.calls import Call
from feedworks.mari.sweep import Sweep, rule
from feedworks.mari.values import User

aten = torch.ops.aten


@rule(aten.embedding_bag.padding_idx)
def _bags(sweep: Sweep, node: Call, arguments: list[Any]) -> list[Any] | None:
    """`(B, L)` words, which the model folds into `(B * L,)` with a bag at every L-th."""
    weight, words, *rest = arguments
    offsets = node.args[2]
    if not isinstance(words, User) or not isinstance(weight, Tensor) or words.axis != 0:
        return None
    if offsets.target != aten.arange.start_step or len(offsets.args) != 3:
        return None
    first, _, step = offsets.args
    if first != 0 or step != words.factor or any(isinstance(x, User) for x in rest[1:]):
        return None
    starts = torch.arange(0, sweep.requests * step, step, device=words.tensor.device)
    bags, *others = node.target(weight, words.tensor, starts, *rest[1:])
    return [User(bags), *others]
