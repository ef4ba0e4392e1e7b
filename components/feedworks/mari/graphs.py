"""MaRI (arXiv 2602.23105): passes over an exported graph that make it smaller, and never other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import Graph, Node

aten = torch.ops.aten
# Notes of the machine that exported, and of the Python lines: neither belongs into a file for others.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn", "custom")


def simplify(program: ExportedProgram, names: Sequence[str]) -> ExportedProgram:
    """Apply all passes in place; the program is functional.

    Args:
        program: of any model.
        names: what its inputs shall be called.
    """
    graph = program.graph
    rename(program, names)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _PASSES:
            _PASSES[node.target](graph, node)
    graph.eliminate_dead_code()
    _drop_unused_weights(program)
    return without_notes(program)


def without_notes(program: ExportedProgram) -> ExportedProgram:
    """Drop, in place, what the graph says of the exporting machine, and checks of types that cannot fail."""
    for node in list(program.graph.nodes):
        for name in _NOTES:
            node.meta.pop(name, None)
        if node.target == aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def rename(program: ExportedProgram, names: Sequence[str]) -> None:
    """Name the inputs of a program, in place."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = [s for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    for spec, name in zip(specs, names, strict=True):
        node = placeholders[spec.arg.name]
        node._rename(name)
        node.target = node.name
        spec.arg = TensorArgument(name=node.name)


def _drop_unused_weights(program: ExportedProgram) -> None:
    """A weight that was cut is there in pieces; the whole one need not be kept and stored."""
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    kept = []
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT or node.users:
            kept.append(spec)
            continue
        program.graph.erase_node(node)
        program.state_dict.pop(str(spec.target), None)
        program.constants.pop(str(spec.target), None)
    signature.input_specs[:] = kept


def _replace(graph: Graph, node: Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _shape(node: Any) -> tuple[Any, ...] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _same_shape(graph: Graph, node: Node) -> None:
    """An expand, slice or view to the shape that is there."""
    if _shape(node) == _shape(node.args[0]):
        _replace(graph, node, node.args[0])


def _sum_of_product(graph: Graph, node: Node) -> None:
    """`a + x W^T` is one product that begins at `a`: no pass over the rows for the sum."""
    if node.kwargs or len(node.args) != 2:
        return
    for other, summand in (node.args, node.args[::-1]):
        if other is summand or _shape(summand) != _shape(node) or len(_shape(node) or ()) != 2:
            continue
        found = _product(summand)
        if found is None or not _begins(other, summand):
            continue
        data, weight, cut = found
        with graph.inserting_before(node):
            if cut:
                weight = _call(graph, aten.slice.Tensor, (weight, 0, *cut))
            turned = _call(graph, aten.permute.default, (weight, [1, 0]))
            joint = graph.call_function(aten.addmm.default, (other, data, turned))
        joint.meta.update(node.meta)
        _replace(graph, node, joint)
        return


def _begins(other: Any, summand: Any) -> bool:
    """Whether a product can begin at a tensor: of its type, and with a number for each output."""
    shape, wanted = _shape(other) or (), _shape(summand) or ()
    same = len(shape) == 2 and shape[1] == wanted[1]
    return same and bool(other.meta["val"].dtype == summand.meta["val"].dtype)


def _product(node: Any) -> tuple[Node, Any, tuple[int, int] | None] | None:
    """Data and weight of a product without bias, or of some of its outputs, and which."""
    cut = None
    if node.target == aten.slice.Tensor and node.args[1] in (1, -1) and len(node.args) == 4:
        cut = node.args[2], node.args[3]
        node = node.args[0]
    if node.target != aten.linear.default or len(node.args) != 2 or (cut is None and len(node.users) > 1):
        return None
    data, weight = node.args
    return (data, weight, cut) if len(_shape(data) or ()) == len(_shape(weight) or ()) == 2 else None


def _call(graph: Graph, target: Any, arguments: tuple[Any, ...]) -> Node:
    """A call of which later passes can ask the shape."""
    node = graph.call_function(target, arguments)
    values = torch.fx.map_arg(arguments, lambda each: each.meta["val"])
    node.meta["val"] = target(*values)
    return node


def _item(graph: Graph, node: Node) -> None:
    """An element of a list that is in the graph."""
    source: Any = node.args[0]
    place: Any = node.args[1]
    if isinstance(source, list | tuple):
        _replace(graph, node, source[place])


_PASSES: dict[Any, Callable[[Graph, Node], None]] = {
    aten.expand.default: _same_shape,
    aten.slice.Tensor: _same_shape,
    aten.view.default: _same_shape,
    aten.reshape.default: _same_shape,
    aten.add.Tensor: _sum_of_product,
    operator.getitem: _item,
}
