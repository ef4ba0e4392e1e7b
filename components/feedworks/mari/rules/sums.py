"""MaRI (arXiv 2602.23105): sums over columns or fields of both sides: those of the user are summed once."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import torch

from feedworks.mari import values
from feedworks.mari.calls import Call, sizes
from feedworks.mari.found import Site
from feedworks.mari.rules.tables import argument, axes_of
from feedworks.mari.sweep import Sweep, rule
from feedworks.mari.values import Form, Row, Term

aten = torch.ops.aten


@rule(aten.sum.dim_IntList, aten.mean.dim)
def _over_columns(sweep: Sweep, node: Call, arguments: list[Any]) -> Form | Row | None:
    form = arguments[0]
    if not isinstance(form, Form) or not form.mixed:
        return None
    if axes_of(node, 1) != [len(form.middle) + 1]:
        return None
    keep, form = bool(argument(node, 2, False)), values.compact(form)
    by = 1.0 if node.target == aten.sum.dim_IntList else 1.0 / form.width
    parts = [(values.tensor_of(term).sum(dim=-1, keepdim=True) * by, term) for term in form.terms]
    terms = tuple(Term(replace(term.atom, tensor=part), 0, (0, 1)) for part, term in parts)
    offset = None if form.offset is None else form.offset.sum().reshape(1) * by
    total = values.compact(Form(terms, form.middle, 1, offset, form.helped))
    _note(sweep, node, form)
    if keep:
        return total
    return _without_column(sweep, total)


def _without_column(sweep: Sweep, total: Form) -> Form | Row:
    """The sums `(B, *middle)`; with a middle its last axis becomes the columns."""
    if not total.middle:
        return Row(sweep.whole(total).squeeze(-1))
    terms = []
    for term in total.terms:
        tensor = term.atom.tensor
        tensor = tensor.expand(*tensor.shape[:-2], total.middle[-1], 1).squeeze(-1)
        terms.append(Term(replace(term.atom, tensor=tensor), 0, (0, total.middle[-1])))
    offset = None if total.offset is None else total.offset.expand(total.middle[-1])
    return Form(tuple(terms), total.middle[:-1], total.middle[-1], offset, total.helped)


def _note(sweep: Sweep, node: Call, form: Form) -> None:
    users = sum(term.width for term in form.terms if term.atom.of_user)
    others = sum(term.width for term in form.terms if not term.atom.of_user)
    positions = 1
    for size in form.middle:
        positions *= int(size)
    helped = tuple(sorted(form.helped))
    sweep.site(Site(node.name, users, others, 1, positions, "sum", helped, width=form.width))


def total_of(sweep: Sweep, node: Call, parts: list[tuple[Any, int]]) -> Any:
    """The sum of values that were summed over their own fields each.

    Args:
        sweep: the run.
        node: the sum over all fields.
        parts: values of the shape of the result, and how many fields each was.
    """
    forms = [sweep.form(part) for part, _ in parts]
    given = [form for form in forms if form is not None]
    if len(given) < len(forms):
        return Row(reduce(torch.add, [sweep.whole(part) for part, _ in parts]))
    total = given[0]
    for form in given[1:]:
        total = values.add(total, form)
    users = sum(length for part, length in parts if values.of_user(part))
    others = sum(length for part, length in parts if not values.of_user(part))
    outputs = 1
    for size in sizes(node)[1:]:
        outputs *= int(size)
    helped = tuple(sorted(total.helped))
    sweep.site(Site(node.name, users, others, outputs, 1, "sum", helped, width=users + others))
    return values.compact(total)
