"""Places for the boxes of a directed graph without cycles: layers by longest path, few crossings.

The method of Sugiyama, Tagawa and Toda (IEEE Trans. SMC 1981): long edges get a bend in every layer between,
layers are ordered by the mean place of their neighbours, and x is the closest to it that keeps boxes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

SWEEPS = 12
GAP = 18.0  # between boxes of one layer
BEND_WIDTH = 4.0

Key = tuple[str, ...]  # (name,) of a box, (from, to, number) of a bend


class Layout(NamedTuple):
    """`layer` and `x` (of the middle) by name; `bends` by edge: the x in each layer between its ends."""

    layer: dict[str, int]
    x: dict[str, float]
    bends: dict[tuple[str, str], list[float]]


def arrange(inputs: Mapping[str, Sequence[str]], widths: Mapping[str, float]) -> Layout:
    """Place the boxes.

    Args:
        inputs: names of the boxes that each one reads, boxes in an order in which readers come later.
        widths: of the boxes.
    """
    layer = _layers(inputs)
    edges = [(source, name) for name, sources in inputs.items() for source in dict.fromkeys(sources)]
    rows: list[list[Key]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    up: dict[Key, list[Key]] = {}
    for name in inputs:
        rows[layer[name]].append((name,))
    chains = {edge: _chain(edge, layer) for edge in edges}
    for chain in chains.values():
        for key in chain[1:-1]:
            rows[layer[key[0]] + int(key[2])].append(key)
        for above, below in pairwise(chain):
            up.setdefault(below, []).append(above)
    down = _turned(up)
    rows = _ordered(rows, up, down)
    width = {key: BEND_WIDTH if len(key) > 1 else widths[key[0]] for row in rows for key in row}
    x = _placed(rows, up, down, width)
    bends = {edge: [x[key] for key in chain[1:-1]] for edge, chain in chains.items()}
    return Layout(layer, {key[0]: at for key, at in x.items() if len(key) == 1}, bends)


def _layers(inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Longest path from a source; what has no input then moves down to just above its first reader."""
    layer: dict[str, int] = {}
    for name, sources in inputs.items():
        layer[name] = 1 + max((layer[source] for source in sources), default=-1)
    first: dict[str, int] = {}
    for name, sources in inputs.items():
        for source in sources:
            first[source] = min(first.get(source, layer[name]), layer[name])
    for name, sources in inputs.items():
        if not sources and name in first:
            layer[name] = first[name] - 1
    return layer


def _chain(edge: tuple[str, str], layer: Mapping[str, int]) -> list[Key]:
    source, name = edge
    bends = [(source, name, str(number)) for number in range(1, layer[name] - layer[source])]
    return [(source,), *bends, (name,)]


def _turned(neighbours: Mapping[Key, Sequence[Key]]) -> dict[Key, list[Key]]:
    turned: dict[Key, list[Key]] = {}
    for key, others in neighbours.items():
        for other in others:
            turned.setdefault(other, []).append(key)
    return turned


def _ordered(
    rows: list[list[Key]], up: Mapping[Key, Sequence[Key]], down: Mapping[Key, Sequence[Key]]
) -> list[list[Key]]:
    """Order every layer by the mean rank of its neighbours, down and up by turns; keep the best order."""
    best, fewest = [list(row) for row in rows], _crossings(rows, up)
    for sweep in range(SWEEPS):
        neighbours, order = (up, rows[1:]) if sweep % 2 == 0 else (down, rows[-2::-1])
        rank = {key: index for row in rows for index, key in enumerate(row)}
        for row in order:
            means = {key: _mean([rank[other] for other in neighbours.get(key, ())], rank[key]) for key in row}
            row.sort(key=means.__getitem__)
            rank.update({key: index for index, key in enumerate(row)})
        if (found := _crossings(rows, up)) < fewest:
            best, fewest = [list(row) for row in rows], found
    return best


def _crossings(rows: Sequence[Sequence[Key]], up: Mapping[Key, Sequence[Key]]) -> int:
    total = 0
    for above, below in pairwise(rows):
        rank = {key: index for index, key in enumerate(above)}
        ends = [end for key in below for end in sorted(rank[other] for other in up.get(key, ()))]
        total += sum(ends[j] > ends[i] for i in range(len(ends)) for j in range(i))
    return total


def _placed(
    rows: Sequence[Sequence[Key]],
    up: Mapping[Key, Sequence[Key]],
    down: Mapping[Key, Sequence[Key]],
    width: Mapping[Key, float],
) -> dict[Key, float]:
    x: dict[Key, float] = {}
    for row in rows:
        x.update(zip(row, _apart([0.0] * len(row), [width[key] for key in row]), strict=True))
    for sweep in range(2 * SWEEPS):
        neighbours = up if sweep % 2 == 0 else down
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = [_mean([x[other] for other in neighbours.get(key, ())], x[key]) for key in row]
            x.update(zip(row, _apart(wanted, [width[key] for key in row]), strict=True))
    left = min((at - width[key] / 2 for key, at in x.items()), default=0.0)
    return {key: at - left for key, at in x.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The places that keep order and gaps, closest to the wanted ones: pools adjacent violators."""
    offset, offsets = 0.0, []
    for index, width in enumerate(widths):
        offset += 0.0 if index == 0 else (widths[index - 1] + width) / 2 + GAP
        offsets.append(offset)
    pools: list[tuple[float, int]] = []  # (sum of wanted places less offsets, members)
    for place, own in zip(wanted, offsets, strict=True):
        total, members = place - own, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / members:
            before, more = pools.pop()
            total, members = total + before, members + more
        pools.append((total, members))
    starts = [total / members for total, members in pools for _ in range(members)]
    return [start + own for start, own in zip(starts, offsets, strict=True)]


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise
