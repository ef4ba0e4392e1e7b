"""MaRI (arXiv 2602.23105): a product with a weight matrix, each side on its own.

Shape legend: B rows, R requests, D columns, N outputs of a product, K columns of one operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from feedworks.mari.calls import Call
from feedworks.mari.found import Kind, Mixed, Site
from feedworks.mari.sweep import Block, Sweep
from feedworks.mari.values import Atom, Form, Normed, Row, Term


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight and bias of the model; several that read one input make one product.

    Args:
        node: name of the product.
        weight_ND: N outputs of D columns.
        bias_N: or none.
    """

    node: str
    weight_ND: Tensor
    bias_N: Tensor | None = None

    @property
    def outputs(self) -> int:
        """N."""
        return int(self.weight_ND.shape[0])


@dataclass(frozen=True, eq=False)
class Operand:
    """Columns `begin` to before `end` of an atom, all of which stand somewhere in a form."""

    atom: Atom
    begin: int
    end: int
    terms: tuple[Term, ...]

    @property
    def width(self) -> int:
        """K."""
        return self.end - self.begin

    @property
    def tensor(self) -> Tensor:
        """The operand at the atom's own rows."""
        whole = self.atom.tensor
        return whole if self.width == whole.shape[-1] else whole[..., self.begin : self.end]


def product(sweep: Sweep, form: Form, weights: Sequence[Weight]) -> Form:
    """A form times the weights one above the other: N is the sum of their outputs."""
    name = weights[0].node
    operands = _operands(form, keep=sweep.options.layout == "keep")
    groups: dict[tuple[bool, int, tuple[int, ...]], list[Operand]] = {}
    for number, operand in enumerate(operands):
        apart = number if sweep.options.layout == "keep" else 0
        key = (operand.atom.of_user, apart, tuple(operand.atom.tensor.shape[1:-1]))
        groups.setdefault(key, []).append(operand)
    bias = _kept_bias(sweep, name, form.offset, weights)
    outputs = sum(weight.outputs for weight in weights)
    terms = []
    for number, (key, members) in enumerate(sorted(groups.items(), key=lambda group: not group[0][0])):
        extra = -sum(member.width for member in members) % sweep.options.pad_to
        weight = sweep.weight(
            f"{name}_{number}", partial(_cut_weight, members, weights, extra), _blocks(members, weights)
        )
        parts = [member.tensor for member in members]
        data = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        data = torch.nn.functional.pad(data, (0, extra)) if extra else data
        out = torch.nn.functional.linear(data, weight, bias if number == 0 else None)
        mixed = next((member.atom.mixed for member in members if member.atom.mixed), None)
        terms.append(Term(Atom(out, key[0], mixed), 0, (0, outputs)))
    sites = _sites(form, operands, weights)
    sweep.site(sites[0])
    sweep.later.update({site.node: site for site in sites[1:]})
    return Form(tuple(terms), form.middle, outputs)


def normed_product(sweep: Sweep, node: Call, normed: Normed, weight: Weight) -> Row:
    """A layer-normalised form times a matrix: mean and deviation are applied to the product.

    With Wg the matrix times the norm's weight: `(x Wg - mean * sum of Wg) * rstd + bias W + b`.
    """
    scale, shift, weight_ND, bias_N = normed.weight, normed.bias, weight.weight_ND, weight.bias_N

    def bias() -> Tensor:
        own = weight_ND.new_zeros(weight_ND.shape[0]) if bias_N is None else bias_N
        return own if shift is None else own + weight_ND @ shift

    graded_ND = weight_ND if scale is None else weight_ND * scale
    sums_N = sweep.weight(f"{weight.node}_sums", lambda: graded_ND.sum(dim=1))
    form = replace(normed.form, helped=normed.form.helped | {"layer_norm"})
    product_BN = sweep.whole(product(sweep, form, [Weight(weight.node, graded_ND)]))
    even = (product_BN - normed.mean_B1 * sums_N) * normed.rstd_B1
    said = f"columns of user and candidate meet in layer_norm, whose deviation scales {sweep.current}"
    return Row(even + sweep.weight(f"{weight.node}_shift", bias), mixed=Mixed(sweep.current, "columns", said))


def _operands(form: Form, *, keep: bool) -> list[Operand]:
    """Runs of columns of atoms that stand in the form; with `keep` as they lie in it."""
    by_atom: dict[int, list[Term]] = {}
    for term in form.terms:
        by_atom.setdefault(id(term.atom.tensor), []).append(term)
    found = []
    for terms in by_atom.values():
        runs: list[tuple[int, int]] = []
        for begin, end in sorted({term.cut for term in terms}):
            joins = runs and (begin < runs[-1][1] or (begin == runs[-1][1] and not keep))
            if joins:
                runs[-1] = (runs[-1][0], max(runs[-1][1], end))
            else:
                runs.append((begin, end))
        for begin, end in runs:
            inside = tuple(term for term in terms if begin <= term.cut[0] < end)
            found.append(Operand(terms[0].atom, begin, end, inside))
    return found


@dataclass(frozen=True, eq=False)
class _Piece:
    """Where columns `start` to before `stop` of a form meet an operand, and how they are scaled."""

    start: int
    stop: int
    scale: Tensor | float


def _columns(operand: Operand) -> list[list[_Piece]]:
    """For each run of an operand's columns that are in the same terms, where those stand."""
    edges = sorted({edge for term in operand.terms for edge in term.cut})
    runs = []
    for low, high in pairwise(edges):
        run = []
        for term in operand.terms:
            if term.cut[0] <= low and high <= term.cut[1]:
                first = low - term.cut[0]
                scale = term.scale
                if isinstance(scale, Tensor) and scale.ndim:
                    scale = scale[first : first + high - low]
                run.append(_Piece(term.start + first, term.start + first + high - low, scale))
        runs.append(run)
    return runs


def _cut_weight(members: Sequence[Operand], weights: Sequence[Weight], extra: int) -> Tensor:
    """The columns of the weights that meet each operand, added up where it stands twice, then zeros."""
    rows = []
    for weight in weights:
        blocks = []
        for member in members:
            for run in _columns(member):
                cuts = [weight.weight_ND[:, piece.start : piece.stop] * piece.scale for piece in run]
                blocks.append(torch.stack(cuts).sum(dim=0) if len(cuts) > 1 else cuts[0])
        rows.append(torch.cat(blocks, dim=1))
    return torch.nn.functional.pad(torch.cat(rows), (0, extra)).contiguous()


def _blocks(members: Sequence[Operand], weights: Sequence[Weight]) -> list[Block]:
    """What of the weights stands unchanged in the one that `_cut_weight` makes."""
    blocks, row = [], 0
    for weight in weights:
        column = 0
        for member in members:
            for run in _columns(member):
                only = run[0]
                if len(run) == 1 and not isinstance(only.scale, Tensor) and only.scale == 1.0:
                    blocks.append(Block(weight.weight_ND, only.start, only.stop, row, column))
                column += only.stop - only.start
        row += weight.outputs
    return blocks


def _kept_bias(sweep: Sweep, name: str, offset_D: Tensor | None, weights: Sequence[Weight]) -> Tensor | None:
    if offset_D is None and len(weights) == 1:
        return weights[0].bias_N
    if offset_D is None and all(weight.bias_N is None for weight in weights):
        return None

    def make() -> Tensor:
        return torch.cat([_bias(offset_D, weight) for weight in weights])

    return sweep.weight(f"{name}_bias", make)


def _bias(offset_D: Tensor | None, weight: Weight) -> Tensor:
    own = weight.bias_N
    if own is None:
        own = weight.weight_ND.new_zeros(weight.outputs)
    return own if offset_D is None else own + weight.weight_ND @ offset_D


def _sites(form: Form, operands: Sequence[Operand], weights: Sequence[Weight]) -> list[Site]:
    users = sum(operand.width for operand in operands if operand.atom.of_user)
    others = sum(operand.width for operand in operands if not operand.atom.of_user)
    positions = prod(int(size) for size in form.middle)
    helped = tuple(sorted(form.helped))
    kind: Kind = "linear" if users and others else "user_only" if users else "shortened"
    shared = weights[0].node if len(weights) > 1 else ""
    return [
        Site(weight.node, users, others, weight.outputs, positions, kind, helped, shared, form.width)
        for weight in weights
    ]
