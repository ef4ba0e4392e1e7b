"""MaRI (arXiv 2602.23105): floating-point operations of products, 2 per multiplication and addition.

Formulas of the paper's section on inference: with Du columns of the user and Dr of candidates, N outputs and
B candidates, one product over the concatenation costs `2 B (Du + Dr) N`; cut by side, `2 (Du + B Dr) N`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from feedworks.mari.programs import weights_of
from feedworks.mari.sweep import Site


def whole(site: Site, rows: int) -> int:
    """Operations of a site's product over all columns at once."""
    return 2 * rows * site.positions * (site.user_width + site.other_width) * site.outputs


def cut(site: Site, rows: int, requests: int = 1) -> int:
    """Operations of a site's products, cut by side."""
    return 2 * site.positions * (requests * site.user_width + rows * site.other_width) * site.outputs


def ratio(user_width: int, other_width: int, rows: int) -> float:
    """`B (Du + Dr) / (Du + B Dr)`, at least 1."""
    if rows == 0 or user_width + other_width == 0:
        return 1.0
    return rows * (user_width + other_width) / (user_width + rows * other_width)


def counted(program: ExportedProgram, inputs: Sequence[Tensor]) -> int:
    """Operations of all products of a program on these inputs, counted as it runs on tensors without data."""
    weights = [tensor.to("meta") for tensor in weights_of(program).values()]
    with FlopCounterMode(display=False) as counter:
        program.graph_module.forward(*weights, *(tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops())
