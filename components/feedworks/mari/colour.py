"""MaRI (arXiv 2602.23105): colour the graph of a model by what every node depends on.

The graph colouring of the paper, reconstructed: the inputs give the colours, one topological sweep carries
them on. It says what could run once per request; what the converter then did stands in its own report.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
Name = Literal["user", "item", "cross", "mixed", "const", "rows"]
# Operations that repeat a row for all candidates.
TILING = (
    aten.expand.default, aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int,
    aten.repeat_interleave.self_Tensor, aten.index_select.default, aten.index.Tensor,
    aten.broadcast_to.default, aten.expand_as.default,
)  # fmt: skip


@dataclass(frozen=True)
class Colour:
    """What a node depends on.

    Attributes:
        name: `user`, `item` or `cross`: on inputs of that side alone (`cross` also on those of the item);
            `mixed`: on the user and on candidates; `const`: on weights alone; `rows`: a count of rows.
        tiled: the node repeats what it is given for all rows.
    """

    name: Name
    tiled: bool = False


def colours(graph: Graph, sides: Mapping[str, str], constants: Collection[str]) -> dict[str, Colour]:
    """The colour of every node by its name.

    Args:
        graph: of an exported model, in topological order.
        sides: `user`, `item`, `cross` or `const` for every input, by placeholder name.
        constants: placeholders of weights, buffers and lifted constants.

    Raises:
        KeyError: a placeholder is neither an input nor a constant.
    """
    found: dict[str, Colour] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node.name] = Colour("const" if node.name in constants else _side(sides[node.name]))
        elif node.op != "output":
            parents = {found[parent.name].name for parent in node.all_input_nodes}
            found[node.name] = Colour(_blend(node, parents), _tiles(node))
    return found


def _side(side: str) -> Name:
    known: dict[str, Name] = {"user": "user", "item": "item", "cross": "cross"}
    return known.get(side, "const")


def _blend(node: Node, parents: set[Name]) -> Name:
    if isinstance(node.meta.get("val"), torch.SymInt):
        return "rows"
    seen = parents - {"const", "rows"}
    if len(seen) == 1:
        return seen.pop()
    if not seen:
        return "const"
    return "mixed" if seen & {"user", "mixed"} else "cross"


def _tiles(node: Node) -> bool:
    """Whether the node has as many rows as there are candidates, and what it repeats has not."""
    if node.target not in TILING or not isinstance(node.args[0], Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return _has_rows(after) and not _has_rows(before)


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and any(not isinstance(size, int) for size in value.shape)
