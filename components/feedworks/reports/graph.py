"""A directed graph as inline SVG: boxes in layers, edges that run down, colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from feedworks.reports.layers import Layout, arrange

CHAR = 7.0  # mean width of a letter at the font size below; text that is a little wider still fits its box
FONT, SMALL = 12, 10
HEIGHT, RISE, MARGIN = 36.0, 30.0, 10.0


class Box(NamedTuple):
    """One node.

    Attributes:
        name: unique.
        label: first line.
        detail: second line, small.
        hint: shown when the pointer rests on the box.
        colour: a CSS colour, `var(--series-1)`.
        inputs: names of the boxes that it reads.
        frame: CSS colour of a heavy frame; without it the frame is thin.
        dashed: the frame is broken.
    """

    name: str
    label: str
    detail: str
    hint: str
    colour: str
    inputs: tuple[str, ...]
    frame: str = ""
    dashed: bool = False


def draw_graph(title: str, boxes: Sequence[Box]) -> str:
    """Return the SVG, in its own size; equal boxes give equal text.

    Args:
        title: read out in the place of the picture.
        boxes: those that read come after those that are read; a graph has no cycles.
    """
    widths = {box.name: _width(box) for box in boxes}
    layout = arrange({box.name: box.inputs for box in boxes}, widths)
    colours = {box.name: box.colour for box in boxes}
    wide = max((layout.x[box.name] + widths[box.name] / 2 for box in boxes), default=0.0) + 2 * MARGIN
    wide = max([wide, *(x + 2 * MARGIN for bends in layout.bends.values() for x in bends)])
    high = 2 * MARGIN + _top(max(layout.layer.values(), default=0)) + HEIGHT
    lines = [_edge(layout, edge, bends, colours) for edge, bends in layout.bends.items()]
    drawn = [_box(box, layout, widths[box.name]) for box in boxes]
    head = (
        f'<svg class="graph" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" '
        f'width="{wide:.0f}" height="{high:.0f}" viewBox="{-MARGIN:.0f} {-MARGIN:.0f} {wide:.0f} {high:.0f}">'
    )
    return "\n".join([head, f"<g fill='none' stroke-width='1.4'>{''.join(lines)}</g>", *drawn, "</svg>"])


def _width(box: Box) -> float:
    return 18 + CHAR * max(len(box.label), len(box.detail) * SMALL / FONT)


def _top(layer: int) -> float:
    return layer * (HEIGHT + RISE)


def _edge(layout: Layout, edge: tuple[str, str], bends: Sequence[float], colours: Mapping[str, str]) -> str:
    source, target = edge
    first = layout.layer[source]
    path = [f"M{layout.x[source]:.1f} {_top(first) + HEIGHT:.1f}"]
    at, y = layout.x[source], _top(first) + HEIGHT
    for number, x in enumerate([*bends, layout.x[target]], start=1):
        top = _top(first + number)
        middle = (y + top) / 2
        path.append(f"C{at:.1f} {middle:.1f} {x:.1f} {middle:.1f} {x:.1f} {top:.1f}")
        at, y = x, top
        if number <= len(bends):
            y = top + HEIGHT
            path.append(f"V{y:.1f}")
    return f'<path d="{"".join(path)}" stroke="{colours[source]}" stroke-opacity="0.65"/>'


def _box(box: Box, layout: Layout, width: float) -> str:
    x, y = layout.x[box.name], _top(layout.layer[box.name])
    frame = f'stroke="{box.frame or box.colour}" stroke-width="{3 if box.frame else 1.2}"'
    frame += ' stroke-dasharray="5 3"' if box.dashed else ""
    weight = ' font-weight="700"' if box.frame else ""
    place = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT:.0f}" rx="7"'
    middle = y + HEIGHT / 2
    detail = (
        f'<text x="{x:.1f}" y="{middle + 12:.1f}" font-size="{SMALL}" fill="var(--muted)">'
        f"{escape(box.detail)}</text>"
        if box.detail
        else ""
    )
    label_y = middle - 2 if box.detail else middle + 4
    return (
        f'<g text-anchor="middle"><title>{escape(box.hint)}</title>'
        f'<rect {place} fill="var(--card)"/>'  # hides the edges that pass behind
        f'<rect {place} fill="{box.colour}" fill-opacity="0.16" {frame}/>'
        f'<text x="{x:.1f}" y="{label_y:.1f}" font-size="{FONT}" fill="var(--ink)"{weight}>'
        f"{escape(box.label)}</text>{detail}</g>"
    )
