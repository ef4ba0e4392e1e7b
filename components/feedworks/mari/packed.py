"""MaRI (arXiv 2602.23105): a twin for one CPU: its weights laid out for the processor when it is loaded.

A product lays out its weight anew in every call. oneDNN does that once where the weight is known to stay, as
in a service.

Shape legend: B rows, R requests, I columns, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from feedworks.mari.accelerate import partial_linear
from feedworks.mari.samples import draw
from feedworks.mari.schema import RankerSchema
from feedworks.mari.twin import Graph, Twin
from feedworks_kernels import onednn

aten = torch.ops.aten
ROWS = 1024  # of the samples that both are compared on
MIN_WIDTH = 16
TOLERANCE = 1e-4

Score = Callable[..., Any]


def packed(twin: Twin, schema: RankerSchema) -> Score:
    """The twin with its weights laid out, or the twin itself where this processor has nothing to gain.

    Args:
        twin: on the CPU, in eval mode.
        schema: what it takes.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return twin
    one, many = (_compiled(twin, twin.graph(several=several)) for several in (False, True))

    def score(*inputs: Tensor, request_B: Tensor | None = None) -> Any:
        outputs = one(*inputs) if request_B is None else many(request_B, *inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    try:
        return score if _agree(twin, score, schema) else twin
    except (RuntimeError, TypeError, ValueError):  # a build of torch without these operators
        return twin


def packed_linear(
    partial_RN: Tensor, x_BI: Tensor, packed_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    """`act(x W^T + partial[request])` as `accelerate.partial_linear`, for a weight that was laid out."""
    if request_B is None:
        bias_N = partial_RN if partial_RN.ndim == 1 else partial_RN[0]
        return onednn.linear(x_BI, packed_NI, bias_N, _ONEDNN[activation])
    mixed_BN = onednn.linear(x_BI, packed_NI)
    mixed_BN += partial_RN.index_select(0, request_B)
    return _IN_PLACE[activation](mixed_BN)


_ONEDNN = {"none": "none", "relu": "relu", "sigmoid": "sigmoid", "silu": "swish"}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "silu": aten.silu_.default,
}


def _agree(twin: Twin, score: Score, schema: RankerSchema) -> bool:
    """Whether both score samples alike; random ids and numbers may well be infinite in both."""
    for rows in ([ROWS], [1], [3, 1, 5]):
        inputs, request_B = draw(schema, rows)
        given = {"request_B": request_B} if len(rows) > 1 else {}
        with torch.inference_mode():
            for one, other in zip(
                _tensors(twin(*inputs, **given)), _tensors(score(*inputs, **given)), strict=True
            ):
                if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                    return False
    return True


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(pytree.tree_leaves(outputs))


def _compiled(twin: Twin, scoring: Graph) -> Callable[..., tuple[Tensor, ...]]:
    """A graph whose weights are constants, those of products laid out."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(scoring.module.graph, {}))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    weights = {
        node.name: twin.get_buffer(name) for node, name in zip(placeholders, scoring.names, strict=False)
    }
    constants: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is partial_linear:
            _lay_out(graph, node, weights, constants)
    for node in placeholders[: len(weights)]:
        if node.users:
            constants[node.name] = weights[node.name]
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(node.name))
        graph.erase_node(node)
    graph.eliminate_dead_code()
    root = torch.nn.Module()
    for name, tensor in constants.items():
        setattr(root, name, tensor)
    compiled: Callable[..., tuple[Tensor, ...]] = fx.GraphModule(root, graph).forward
    return compiled


def _lay_out(
    graph: fx.Graph, node: fx.Node, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> None:
    """Replace a product of rows with a weight by one with the weight laid out, where that is worth it."""
    partial, data, source, request, activation = node.args
    first, last = _columns(source)
    weight = weights.get(first.name) if isinstance(first, fx.Node) else None
    value = data.meta.get("val") if isinstance(data, fx.Node) else None
    if weight is None or weight.dtype != torch.float32 or not isinstance(value, Tensor) or value.ndim != 2:
        return
    weight = weight[last] if last is not None else weight
    if weight.ndim != 2 or min(weight.shape) < MIN_WIDTH:
        return
    name = f"packed_{node.name}"
    constants[name] = onednn.packed(weight)
    with graph.inserting_before(node):
        given: Any = (partial, data, graph.get_attr(name), request, activation)
        product = graph.call_function(packed_linear, given)
    product.meta.update(node.meta)
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _columns(source: Any) -> tuple[Any, slice | None]:
    """A weight, or rows of one that several products share."""
    if isinstance(source, fx.Node) and source.target == aten.slice.Tensor and source.args[1] == 0:
        first, _, begin, end = source.args
        return first, slice(begin, end)
    return source, None
