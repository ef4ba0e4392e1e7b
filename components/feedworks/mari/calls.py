"""MaRI (arXiv 2602.23105): nodes of an exported graph, and stand-ins for them on other shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Call = Any  # a torch.fx.Node, whose arguments are typed as a union of some thirty things


@dataclass(frozen=True)
class Sized:
    """A shape in the place of a node's tensor."""

    shape: tuple[Any, ...]


@dataclass(frozen=True)
class Stand:
    """An operation that is not in the graph: one of its nodes on a part of what it is given.

    Attributes:
        name: unique in a run; weights are kept under it.
        target: the operation.
        args: arguments as a node's, with stand-ins in the place of nodes.
        shape: of the result in the model.
    """

    name: str
    target: Any
    args: Sequence[Any]
    shape: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Sized]:
        """As a node's."""
        return {"val": Sized(self.shape)}


def shaped(node: Call, shape: Sequence[Any]) -> Stand:
    """A stand-in for a node with another shape, for an argument."""
    return Stand(node.name, node.target, (), tuple(shape))


def raw(node: Call) -> tuple[Any, ...]:
    """Shape of a node's tensor in the model with torch's own symbols."""
    return tuple(node.meta["val"].shape)


def sizes(node: Call) -> tuple[Any, ...]:
    """Shape of a node's tensor in the model: numbers, and expressions in the number of rows.

    Expressions, not torch's symbols: those may not be compared while another graph is traced.
    """
    return tuple(size if isinstance(size, int) else size.node.expr for size in raw(node))


def leaves_of(tree: Any) -> list[Any]:
    """What stands in nested lists."""
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in leaves_of(part)]
    return [tree]


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Nested lists and dicts with a function applied to what stands in them."""
    if isinstance(tree, list | tuple):
        return [mapped(part, function) for part in tree]
    if isinstance(tree, dict):
        return {key: mapped(part, function) for key, part in tree.items()}
    return function(tree)
