"""MaRI (arXiv 2602.23105): valid inputs of a ranking model, drawn from its schema.

Shape legend: B rows (candidates of all requests), R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from feedworks.mari.graphs import rename
from feedworks.mari.programs import export_rows
from feedworks.mari.schema import ModelInput, RankerSchema


class Sample(NamedTuple):
    """Several requests in one batch: user inputs have R rows, others B; `request_B` is int64."""

    inputs: tuple[Tensor, ...]
    request_B: Tensor


def draw(schema: RankerSchema, rows_per_request: Sequence[int], seed: int = 0) -> Sample:
    """Draw requests: ids uniformly from those that there are, numbers from the normal distribution.

    Args:
        schema: of the model.
        rows_per_request: candidates of each request.
        seed: equal seeds give equal requests.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_R = torch.tensor(rows_per_request)
    request_B = torch.arange(len(rows_R)).repeat_interleave(rows_R)
    rows = {True: len(rows_R), False: len(request_B)}
    return Sample(tuple(_values(i, rows[i.of_user], generator) for i in schema.inputs), request_B)


def tiled(schema: RankerSchema, sample: Sample) -> tuple[Tensor, ...]:
    """The inputs that the model itself takes: those of the user repeated, B rows each."""
    return tuple(
        x.index_select(0, sample.request_B) if i.of_user else x
        for x, i in zip(sample.inputs, schema.inputs, strict=True)
    )


def one_request(schema: RankerSchema, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a twin for one request of `rows` candidates."""
    return draw(schema, [rows], seed).inputs


def export_ranker(model: nn.Module, schema: RankerSchema) -> ExportedProgram:
    """Export a ranking model on a sample of its schema.

    Raises:
        ModelError: it is in training mode, does not take the schema's inputs, or cannot be exported.
    """
    sample = draw(schema, [5])
    program, _ = export_rows(model, tiled(schema, sample), list(schema.sides.values()))
    rename(program, list(schema.sides))
    program.graph_module.recompile()
    return program


def _values(each: ModelInput, rows: int, generator: torch.Generator) -> Tensor:
    shape = (rows, *each.shape)
    if each.dtype == "float32":
        return torch.randn(shape, generator=generator)
    sizes = torch.tensor(each.sizes or (2,))
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * sizes).to(torch.int64)
