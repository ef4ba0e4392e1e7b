"""MaRI (arXiv 2602.23105): one ranking model in the ways that serving stacks run it, from one graph.

`vani` repeats the user's inputs for every candidate; `uoi` (user-side one-shot inference) runs what depends
on the user alone once, then repeats it; `mari` cuts the products too, with one product per side;
`mari_fragmented` cuts them where the columns lie, a product for each block. These two score with this house's
kernels, the first two with PyTorch's own; `mari_plain` and `uoi_kernels` are the other way round, to tell the
two gains apart.

Shape legend: B rows (candidates).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from feedworks.mari.convert import reparameterise
from feedworks.mari.programs import weights_of
from feedworks.mari.samples import draw, tiled
from feedworks.mari.schema import RankerSchema
from feedworks.mari.twin import Twin

VANI, UOI, MARI, FRAGMENTED = "vani", "uoi", "mari", "mari_fragmented"
PLAIN, UOI_KERNELS = "mari_plain", "uoi_kernels"
PARADIGMS = (VANI, UOI, MARI, FRAGMENTED)
Scorer = Callable[..., Any]


class Vanilla(nn.Module):
    """The model itself, given one request: repeats the user's inputs at its entry.

    Args:
        program: the exported model.
        schema: of the model.
    """

    def __init__(self, program: ExportedProgram, schema: RankerSchema) -> None:
        super().__init__()
        self._weights = list(weights_of(program).values())
        self._run = program.graph_module.forward
        self._of_user = [each.of_user for each in schema.inputs]

    def forward(self, *inputs: Tensor) -> Any:
        """Score one request: user inputs of one row, others of B rows."""
        rows = next(x.shape[0] for x, user in zip(inputs, self._of_user, strict=True) if not user)
        # index_select writes the copies, as a request that arrives tiled has them.
        whole = torch.zeros(rows, dtype=torch.int64)
        given = [
            x.index_select(0, whole) if user else x for x, user in zip(inputs, self._of_user, strict=True)
        ]
        return self._run(*self._weights, *given)


def twins(
    program: ExportedProgram, schema: RankerSchema, names: Sequence[str] = PARADIGMS
) -> dict[str, Twin]:
    """The twins of a program, by paradigm; VanI has none."""
    example = tiled(schema, draw(schema, [5]))
    options: dict[str, dict[str, Any]] = {
        UOI: {"cut": False, "kernels": False},
        UOI_KERNELS: {"cut": False},
        MARI: {},
        PLAIN: {"kernels": False},
        FRAGMENTED: {"layout": "keep"},
    }
    return {
        name: reparameterise(program, example, schema.sides, **options[name]).twin
        for name in names
        if name in options
    }


def scorers(
    program: ExportedProgram, schema: RankerSchema, names: Sequence[str] = PARADIGMS
) -> dict[str, nn.Module]:
    """Modules that score one request, by paradigm; all take user inputs of one row."""
    found: dict[str, nn.Module] = dict(twins(program, schema, names))
    return {name: found.get(name) or Vanilla(program, schema) for name in names}
