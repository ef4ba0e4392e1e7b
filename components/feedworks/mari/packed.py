"""MaRI (arXiv 2602.23105): a twin for one CPU: its weights laid out for the processor when it is loaded.

A product by the usual operators lays out its weight anew in every call. oneDNN does that once where the
weight is known to stay, as in a service, and takes the ReLU into the same pass.
64 -> 256 -> 128 -> 1 for 100 candidates: 101 us instead of 172 for one request, 389 instead of 494 for eight
(one core of an AMD EPYC, a busy machine, side by side).

Shape legend: B rows, R requests, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from feedworks.mari.samples import draw
from feedworks.mari.schema import RankerSchema
from feedworks.mari.twin import Twin

aten = torch.ops.aten
ROWS = 1024  # for which the layout is chosen; it is right for any number
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
    one, many = (_compiled(program, list(twin.sides.values())) for program in twin.programs)

    def score(*inputs: Tensor, request_B: Tensor | None = None) -> Any:
        outputs = one(*inputs) if request_B is None else many(request_B, *inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    try:
        return score if _agree(twin, score, schema) else twin
    except (RuntimeError, TypeError, ValueError):  # a build of torch without these operators
        return twin


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
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _compiled(program: ExportedProgram, sides: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
    """A graph of one program whose weights are constants, those of products laid out."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    weights = _weights(program)
    constants: dict[str, Tensor] = {}
    few = _rows_of_users(program, sides)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _RULES and _rows(node) not in few:
            _RULES[node.target](graph, node, weights, constants)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in weights:
            if node.users:
                constants[node.name] = weights[node.name]
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.get_attr(node.name))
            graph.erase_node(node)
    graph.eliminate_dead_code()
    root = torch.nn.Module()
    for name, tensor in constants.items():
        setattr(root, name, tensor)
    module = fx.GraphModule(root, graph)
    compiled: Callable[..., tuple[Tensor, ...]] = module.forward
    return compiled


def _rows_of_users(program: ExportedProgram, sides: Sequence[str]) -> set[str]:
    """How matrices with a row per request begin: the call costs more than laying out their weights."""
    names = program.graph_signature.user_inputs[-len(sides) :]
    rows = {node.name: _rows(node) for node in program.graph.nodes if node.op == "placeholder"}
    return {rows[str(name)] for name, side in zip(names, sides, strict=True) if side == "user"} - {""}


def _rows(node: fx.Node) -> str:
    """How many rows a matrix has, a number or a symbol; nothing for what is no matrix."""
    value = node.meta.get("val")
    return f"{value.shape[0]}" if isinstance(value, Tensor) and value.ndim == 2 else ""


def _weights(program: ExportedProgram) -> dict[str, Tensor]:
    """Weights and constants by the name of their placeholder."""
    state = {**program.state_dict, **program.constants}
    return {
        spec.arg.name: state[spec.target].detach()
        for spec in program.graph_signature.input_specs
        if spec.kind != InputKind.USER_INPUT and spec.target in state
    }


def _pack(weight_NI: Any, weights: Mapping[str, Tensor], constants: dict[str, Tensor]) -> str:
    """Lay out a weight; the name of the constant, or nothing if it is not worth it."""
    weight = weights.get(weight_NI.name) if isinstance(weight_NI, fx.Node) else None
    if weight is None or weight.dtype != torch.float32 or weight.ndim != 2 or min(weight.shape) < MIN_WIDTH:
        return ""
    name = f"packed_{weight_NI.name}"
    if name not in constants:
        constants[name] = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return name


def _linear(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Tensor], constants: dict[str, Tensor]
) -> None:
    """`x W^T + b`, and the ReLU that follows."""
    data, weight, *rest = node.args
    if not (name := _pack(weight, weights, constants)):
        return
    bias = rest[0] if rest else None
    relu = _only_relu(node)
    with graph.inserting_before(node):
        arguments: Any = (data, graph.get_attr(name), bias, "relu" if relu else "none", [], "")
        product = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
    _replace(graph, product, [node, relu] if relu else [node])


def _addmm(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Tensor], constants: dict[str, Tensor]
) -> None:
    """`a + x W^T`, and the ReLU that follows; the sum is taken in the memory of the product."""
    if node.kwargs or len(node.args) != 3:
        return
    start, data, turned = node.args
    if not isinstance(turned, fx.Node) or turned.target != aten.permute.default or turned.args[1] != [1, 0]:
        return
    if not (name := _pack(turned.args[0], weights, constants)):
        return
    relu = _only_relu(node)
    with graph.inserting_before(node):
        arguments: Any = (data, graph.get_attr(name), None, "none", [], "")
        product = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
        total = graph.call_function(aten.add_.Tensor, (product, start))
        if relu:
            total = graph.call_function(aten.relu_.default, (total,))
    _replace(graph, total, [node, relu] if relu else [node])


def _only_relu(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target == aten.relu.default else None


def _replace(graph: fx.Graph, by: fx.Node, nodes: list[fx.Node]) -> None:
    nodes[-1].replace_all_uses_with(by)
    for node in reversed(nodes):
        graph.erase_node(node)


_RULES = {aten.linear.default: _linear, aten.addmm.default: _addmm}
