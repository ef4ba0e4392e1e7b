"""MaRI (arXiv 2602.23105): the site report: a model's coloured graph, what was cut, and what that saves.

The report is plain JSON, so that a page, a card or another program can read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from feedworks.mari import flops
from feedworks.mari.colour import colours
from feedworks.mari.convert import Conversion
from feedworks.mari.drawing import GraphNode
from feedworks.mari.found import Site
from feedworks.mari.programs import weights_of
from feedworks.mari.samples import draw as draw_sample
from feedworks.mari.samples import one_request, tiled
from feedworks.mari.schema import RankerSchema

JsonObject = dict[str, Any]
ONCE = "user_only"
NO_WEIGHT = ("attention", "sum")


def site_report(
    program: ExportedProgram, conversion: Conversion, schema: RankerSchema, rows: Sequence[int]
) -> JsonObject:
    """Describe a conversion.

    Args:
        program: the exported model, functional.
        conversion: what became of it.
        schema: of both.
        rows: candidates of a request, each with its own count of operations.

    Returns:
        `nodes` of the graph; `sites`; `refusals`; `flops` of all products, `{rows: [before, after]}`.
    """
    sites = [
        {**asdict(site), "helped": list(site.helped), "flops": _of_site(site, rows)}
        for site in conversion.report.sites
    ]
    return {
        "nodes": [node._asdict() for node in graph_nodes(program, schema)],
        "sites": sites,
        "refusals": [asdict(refusal) for refusal in conversion.report.refusals],
        "flops": {str(b): _all_products(program, conversion, schema, b) for b in rows},
    }


def cut_sites(report: JsonObject) -> list[JsonObject]:
    """The sites that one-shot inference alone would not have: user and candidate met there."""
    return [site for site in report["sites"] if site["kind"] != ONCE]


def graph_nodes(program: ExportedProgram, schema: RankerSchema) -> list[GraphNode]:
    """The nodes of a program with their colours, in its order."""
    inputs = program.graph_signature.user_inputs
    sides = dict(zip(inputs, schema.sides.values(), strict=True))
    colour = colours(program.graph, sides, weights_of(program))
    return [
        GraphNode(
            name=node.name,
            op="input" if node.op == "placeholder" else _op(node),
            colour=colour[node.name].name,
            shape=_shape(node),
            inputs=tuple(each.name for each in node.all_input_nodes),
        )
        for node in program.graph.nodes
        if node.op != "output"
    ]


def _of_site(site: Site, rows: Sequence[int]) -> dict[str, list[int]]:
    """Operations before and after; none for what is no product with a weight."""
    if site.kind in NO_WEIGHT:
        return {}
    width = site.width or site.user_width + site.other_width
    before = {b: 2 * b * site.positions * width * site.outputs for b in rows}
    return {str(b): [before[b], flops.cut(site, b)] for b in rows}


def _all_products(
    program: ExportedProgram, conversion: Conversion, schema: RankerSchema, rows: int
) -> list[int]:
    before = flops.counted(program, tiled(schema, draw_sample(schema, [rows])))
    return [before, flops.counted(conversion.twin.programs[0], one_request(schema, rows))]


def _op(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removeprefix("aten.")
    return str(getattr(node.target, "__name__", node.target))


def _shape(node: Node) -> str:
    shape = getattr(node.meta.get("val"), "shape", ())
    return ", ".join(str(size) if isinstance(size, int) else "rows" for size in shape)
