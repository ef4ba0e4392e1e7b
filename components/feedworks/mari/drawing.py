"""MaRI (arXiv 2602.23105): the coloured graph of a model as a picture that a person can read.

What only moves numbers is drawn as one with what it moves, functions of one value with what they follow, and
equal nodes side by side as one; parameters and constants are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from feedworks.reports.graph import Box, draw_graph

COLOURS = {
    "user": "var(--series-1)",
    "item": "var(--series-2)",
    "cross": "var(--series-4)",
    "mixed": "var(--series-8)",
}
CUT, REFUSED = "var(--series-3)", "var(--series-5)"
HIDDEN = ("const", "rows")  # weights, and counts of rows
# Operations that hand on the numbers they get, by the name before the first dot.
LAYOUT = {
    *("view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "squeeze"),
    *("unsqueeze", "clone", "contiguous", "alias", "detach", "_to_copy", "to", "getitem", "repeat", "split"),
    *("split_with_sizes", "lift_fresh_copy", "flatten", "unflatten", "movedim", "chunk", "unbind"),
}
# Operations of one value that still get a box of their own.
APART = {
    *("linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "embedding", "embedding_bag", "cat", "stack"),
    *("sum", "mean", "softmax", "layer_norm"),
}
MAX_LABEL = 30
SAID = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_layer_norm": "layer_norm",
    "_softmax": "softmax",
    "scaled_dot_product_attention": "attention",
}


class GraphNode(NamedTuple):
    """A node of the exported graph.

    `op` is an operation such as `linear.default`, or `input`; `colour` is user, item, cross, mixed, const or
    rows;
    `shape` text such as `rows, 64`.
    """

    name: str
    op: str
    colour: str
    shape: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Nodes that are drawn as one; `first` gives the name."""

    first: GraphNode
    inputs: tuple[str, ...]
    members: tuple[str, ...]
    then: tuple[str, ...] = ()
    times: int = 1
    shape: str = field(default="")


def draw_model(nodes: Sequence[GraphNode], cut: Mapping[str, str], refused: Collection[str]) -> str:
    """Return the SVG of a model's graph.

    Args:
        nodes: in the order of the graph.
        cut: nodes whose products were cut, drawn with a heavy frame, and a line on each.
        refused: names of those that could not be cut, drawn with a broken frame.
    """
    marks = {**dict.fromkeys(refused, REFUSED), **cut}
    groups = _side_by_side(_chained(nodes, marks), marks)
    boxes = [_box(group, cut, set(refused)) for group in groups.values()]
    return draw_graph("the coloured graph", boxes)


def _chained(nodes: Sequence[GraphNode], marked: Collection[str]) -> dict[str, _Group]:
    """Leave out constants; join what hands on one value, or works on it alone, with what makes it."""
    readers: dict[str, int] = {}
    for node in nodes:
        for name in set(node.inputs):
            readers[name] = readers.get(name, 0) + 1
    stands_in: dict[str, str] = {}  # node -> the group that it became part of
    groups: dict[str, _Group] = {}
    for node in nodes:
        if node.colour in HIDDEN or node.op.startswith("_assert"):
            continue
        inputs = tuple(dict.fromkeys(stands_in[name] for name in node.inputs if name in stands_in))
        moves = _short(node.op) in LAYOUT
        source = inputs[0] if len(inputs) == 1 else ""
        same = bool(source) and groups[source].first.colour == node.colour
        alone = same and groups[source].first.op != "input" and _readers(groups[source], readers) == 1
        if node.name not in marked and same and (moves or (alone and _short(node.op) not in APART)):
            group = groups[source]
            then = group.then if moves else (*group.then, _short(node.op))
            shape = node.shape if alone else group.shape
            groups[source] = replace(group, members=(*group.members, node.name), then=then, shape=shape)
            stands_in[node.name] = source
        else:
            groups[node.name] = _Group(node, inputs, (node.name,), shape=node.shape)
            stands_in[node.name] = node.name
    return groups


def _readers(group: _Group, readers: Mapping[str, int]) -> int:
    """Nodes outside of a group that read it."""
    return sum(readers.get(name, 0) for name in group.members) - (len(group.members) - 1)


def _side_by_side(groups: dict[str, _Group], marks: Mapping[str, str]) -> dict[str, _Group]:
    """Join groups of one kind that read the same and are read by the same, until there are none left."""
    while True:
        readers: dict[str, set[str]] = {name: set() for name in groups}
        for name, group in groups.items():
            for source in group.inputs:
                readers[source].add(name)
        kinds: dict[tuple[object, ...], list[str]] = {}
        for name, group in groups.items():
            if group.first.op != "input":
                kind = (group.first.op, group.then, group.first.colour, group.shape, marks.get(name))
                kinds.setdefault((*kind, group.inputs, frozenset(readers[name])), []).append(name)
        equal = [names for names in kinds.values() if len(names) > 1]
        if not equal:
            return groups
        stands_in = {name: names[0] for names in equal for name in names[1:]}
        merged: dict[str, _Group] = {}
        for name, group in groups.items():
            if name in stands_in:
                first = merged[stands_in[name]]
                members, times = (*first.members, *group.members), first.times + group.times
                merged[stands_in[name]] = replace(first, members=members, times=times)
            else:
                inputs = tuple(dict.fromkeys(stands_in.get(source, source) for source in group.inputs))
                merged[name] = replace(group, inputs=inputs)
        groups = merged


def _box(group: _Group, cut: Mapping[str, str], refused: set[str]) -> Box:
    node = group.first
    is_input = node.op == "input"
    label = node.name if is_input else " ".join([_short(node.op), *(f"· {name}" for name in group.then)])
    label = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
    return Box(
        name=node.name,
        label=f"{label} ×{group.times}" if group.times > 1 else label,
        detail=cut.get(node.name, group.shape),
        hint=f"{', '.join(group.members)} ({node.colour})",
        colour=COLOURS[node.colour],
        inputs=group.inputs,
        frame=CUT if node.name in cut else REFUSED if node.name in refused else "",
        dashed=node.name in refused,
    )


def _short(op: str) -> str:
    name = op.removeprefix("aten.").partition(".")[0]
    return SAID.get(name, name)
