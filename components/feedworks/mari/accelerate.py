"""MaRI (arXiv 2602.23105): a twin's graph with its products run by this house's kernels.

The programs that are stored hold PyTorch's own operations only. What scores is a copy in which a product, the
user's partial sum that it begins at, and the activation after it are one call of `user_item_linear`: fused
Triton on a GPU, oneDNN or MKL on a CPU.

Shape legend: B rows, R requests, I columns, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from feedworks_kernels import user_partial_linear

aten = torch.ops.aten
_ACTIVATIONS = {aten.relu.default: "relu", aten.sigmoid.default: "sigmoid", aten.silu.default: "silu"}
# What writes its result to new memory, and what can write over an operand that nothing else reads.
_FRESH = {
    aten.linear.default, aten.addmm.default, aten.bmm.default, aten.matmul.default, aten.add.Tensor,
    aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.embedding.default, aten.layer_norm.default,
    aten.softmax.int, aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.silu.default,
}  # fmt: skip
_IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor, aten.sub.Tensor: aten.sub_.Tensor, aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor, aten.relu.default: aten.relu_.default,
    aten.sigmoid.default: aten.sigmoid_.default, aten.tanh.default: aten.tanh_.default,
    aten.silu.default: aten.silu_.default,
}  # fmt: skip
_TURNABLE = (aten.add.Tensor, aten.mul.Tensor)


def partial_linear(
    partial_RN: Tensor, x: Tensor, weight_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    """`act(x W^T + partial[request])` for x of any number of axes; a partial sum of one axis is a bias."""
    if partial_RN.ndim == 1:
        partial_RN = partial_RN.unsqueeze(0)
    if x.ndim == 2:
        return user_partial_linear(partial_RN, x, weight_NI, request_B, activation=activation, trusted=True)
    flat = user_partial_linear(
        partial_RN, x.reshape(-1, x.shape[-1]), weight_NI, None, activation=activation, trusted=True
    )
    return flat.reshape(*x.shape[:-1], weight_NI.shape[0])


def accelerated(program: ExportedProgram) -> GraphModule:
    """Copy a simplified program's graph, its products replaced; takes what the program's own graph takes."""
    copied = Graph()
    output = copied.graph_copy(program.graph, {})
    copied.output(output)
    for node in list(copied.nodes):
        if node.op == "call_function" and _is_product(node):
            _replace(copied, node)
    copied.eliminate_dead_code()
    for node in list(copied.nodes):
        if node.op == "call_function" and node.target in _IN_PLACE:
            _reuse(copied, node)
    return GraphModule(program.graph_module, copied)


def _is_product(node: Node) -> bool:
    if node.target == aten.addmm.default:
        turned: Any = node.args[2]
        return not node.kwargs and isinstance(turned, Node) and _turns(turned)
    if node.target != aten.linear.default or len(node.args) < 3:
        return False
    x, weight, bias = (_value(each) for each in node.args)
    shapes = x is not None and weight is not None and bias is not None
    # A product over R rows is small; it stays as it is.
    return shapes and x.ndim >= 2 and bias.ndim == 1 and not isinstance(x.shape[0], int)


def _turns(node: Node) -> bool:
    return node.target == aten.permute.default and node.args[1] == [1, 0]


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, Node) else None


def _replace(graph: Graph, node: Node) -> None:
    request: Any = None
    if node.target == aten.addmm.default:
        partial, x, turned = node.args
        weight: Any = turned.args[0]  # type: ignore[union-attr]
        if not _fits(partial, node):
            return
        if isinstance(partial, Node) and partial.target == aten.index_select.default and partial.args[1] == 0:
            partial, _, request = partial.args
        elif _rows(partial) != 1:
            return
    else:
        x, weight, partial = node.args
    last, activation = node, "none"
    if len(node.users) == 1 and (following := next(iter(node.users))).target in _ACTIVATIONS:
        last, activation = following, _ACTIVATIONS[following.target]
    with graph.inserting_before(last):
        joint = graph.call_function(partial_linear, (partial, x, weight, request, activation))
    joint.meta.update(last.meta)
    last.replace_all_uses_with(joint)


def _reuse(graph: Graph, node: Node) -> None:
    """Write over an operand: new memory costs more than the sum, as the system clears each page of it."""
    target: Any = node.target
    if node.kwargs:
        return
    orders = [node.args, node.args[::-1]] if node.target in _TURNABLE and len(node.args) == 2 else [node.args]
    for arguments in orders:
        first = arguments[0]
        if isinstance(first, Node) and _is_spent(first) and _alike(first, node):
            with graph.inserting_before(node):
                written = graph.call_function(_IN_PLACE[target], tuple(arguments))
            written.meta.update(node.meta)
            node.replace_all_uses_with(written)
            graph.erase_node(node)
            return


def _is_spent(node: Node) -> bool:
    fresh = node.target in _FRESH or node.target in _IN_PLACE.values() or node.target is partial_linear
    return fresh and len(node.users) == 1


def _alike(one: Node, other: Node) -> bool:
    left, right = _value(one), _value(other)
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.dtype != right.dtype:
        return False
    return [str(size) for size in left.shape] == [str(size) for size in right.shape]


def _fits(partial: Any, product: Node) -> bool:
    """Whether there is a number for each output: the kernels do not look again, and none is repeated."""
    start, out = _value(partial), _value(product)
    return start is not None and out is not None and str(start.shape[-1]) == str(out.shape[-1])


def _rows(node: Any) -> Any:
    value = _value(node)
    return value.shape[0] if value is not None and value.ndim == 2 else 1
