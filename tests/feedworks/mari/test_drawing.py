"""What the picture of a model leaves out and joins, and that it never joins what differs."""

from __future__ import annotations

from feedworks.mari.drawing import GraphNode, _chained, _side_by_side, draw_model


def node(name: str, op: str, colour: str, *inputs: str, shape: str = "rows, 8") -> GraphNode:
    return GraphNode(name, op, colour, shape, inputs)


NODES = [
    node("weight", "input", "const"),
    node("user", "input", "user"),
    node("item", "input", "item"),
    *(node(f"table_{i}", "embedding.default", "user", "weight", "user") for i in range(3)),
    node("cat", "cat.default", "mixed", "table_0", "table_1", "table_2", "item"),
    node("view", "view.default", "mixed", "cat"),
    node("linear", "linear.default", "mixed", "view", "weight"),
    node("relu", "relu.default", "mixed", "linear"),
    node("linear_1", "linear.default", "mixed", "relu", "weight"),
    node("sigmoid", "sigmoid.default", "mixed", "linear_1"),
    node("other", "tanh.default", "mixed", "linear_1"),
    node("add", "add.Tensor", "mixed", "sigmoid", "other"),
]


def drawn() -> dict[str, tuple[tuple[str, ...], tuple[str, ...], int]]:
    groups = _side_by_side(_chained(NODES, {"linear"}), {"linear": "cut"})
    return {name: (group.inputs, group.then, group.times) for name, group in groups.items()}


def test_constants_go_layout_and_functions_join_and_equals_are_counted() -> None:
    assert drawn() == {
        "user": ((), (), 1),
        "item": ((), (), 1),
        "table_0": (("user",), (), 3),
        "cat": (("table_0", "item"), (), 1),
        "linear": (("cat",), ("relu",), 1),
        "linear_1": (("linear",), (), 1),
        # Two functions read linear_1, so neither may become part of it.
        "sigmoid": (("linear_1",), (), 1),
        "other": (("linear_1",), (), 1),
        "add": (("sigmoid", "other"), (), 1),
    }


def test_a_branch_behind_a_view_keeps_functions_apart() -> None:
    nodes = [
        node("item", "input", "item"),
        node("linear", "linear.default", "item", "item"),
        node("view", "view.default", "item", "linear"),
        node("relu", "relu.default", "item", "view"),
        node("add", "add.Tensor", "item", "relu", "linear"),
    ]
    assert list(_chained(nodes, ())) == ["item", "linear", "relu", "add"]


def test_cut_and_refused_nodes_are_framed() -> None:
    svg = draw_model(NODES, {"linear": "24 | 8 → 8"}, ["add"])
    assert "24 | 8 → 8" in svg
    assert svg.count('stroke="var(--series-3)" stroke-width="3"') == 1
    assert svg.count('stroke="var(--series-5)" stroke-width="3" stroke-dasharray') == 1
    assert "embedding ×3" in svg
    assert ">weight" not in svg
