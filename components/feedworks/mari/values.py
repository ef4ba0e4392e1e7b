"""MaRI (arXiv 2602.23105): what a value of a ranking model is made of.

A model scores B candidates (rows). What depends on the user alone is the same for all rows of a request, so
it is kept at one row per request, R in all, and repeated only where it meets something of a candidate.
A `Form` keeps sums, scalings and concatenations open: each of its terms is a tensor that stands in some of
the last axis's columns. A product with a weight matrix is then a product for each term, and those of the user
cost R rows instead of B.

Shape legend: B rows, R requests, D columns (last axis), W columns of a term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from feedworks.mari.found import Mixed


class Value:
    """What the sweep computes with; everything else is a constant."""


@dataclass(frozen=True, eq=False)
class User(Value):
    """A tensor that depends on the request alone, kept at one row per request.

    The model means this tensor with row b taken from the request of row b. Along `axis` it has R * factor
    entries, the entries of a request together.

    `single`: in the model itself there is one row for all candidates, not yet repeated.
    """

    tensor: Tensor
    axis: int = 0
    factor: int = 1
    single: bool = False


@dataclass(frozen=True, eq=False)
class Row(Value):
    """A tensor as in the model: it depends on the candidates, or on all rows together.

    `has_rows`: its first axis is the B rows; a mean over the rows, for one, has none.
    `mixed`: where the user came into it, if it did.
    """

    tensor: Tensor
    has_rows: bool = True
    mixed: Mixed | None = None


@dataclass(frozen=True, eq=False)
class Count:
    """A size that was computed from the number of rows."""

    value: Any


@dataclass(frozen=True, eq=False)
class Atom:
    """A tensor of a form: rows first, R of them for the user's and B for others.

    Axes between the rows and the columns may be 1 where the form's are longer.
    `mixed`: of a candidate's, where the user came into it, if it did.
    """

    tensor: Tensor
    of_user: bool
    mixed: Mixed | None = None


@dataclass(frozen=True, eq=False)
class Term:
    """An atom's columns `cut`, times `scale`, in the columns of a form that begin at `start`.

    `scale` is a number or a tensor of W numbers.
    """

    atom: Atom
    start: int
    cut: tuple[int, int]
    scale: Tensor | float = 1.0

    @property
    def width(self) -> int:
        """W."""
        return self.cut[1] - self.cut[0]

    @property
    def stop(self) -> int:
        """First column of the form after the term."""
        return self.start + self.width


@dataclass(frozen=True, eq=False)
class Form(Value):
    """The sum of its terms, each in its columns, and of `offset`: a tensor `(B, *middle, width)`.

    Args:
        terms: what stands in which columns; they may overlap.
        middle: sizes of the axes between rows and columns.
        width: D.
        offset: D constants, or none.
        helped: what was moved out of the way to keep the parts apart.
    """

    terms: tuple[Term, ...]
    middle: tuple[int, ...]
    width: int
    offset: Tensor | None = None
    helped: frozenset[str] = frozenset()

    @property
    def of_user(self) -> bool:
        """Whether no term has anything of a candidate."""
        return all(term.atom.of_user for term in self.terms)

    @property
    def mixed(self) -> bool:
        """Whether terms of the user and of candidates stand side by side."""
        return len({term.atom.of_user for term in self.terms}) == 2


def of_user(value: Value) -> bool:
    """Whether a value has nothing of a candidate."""
    if isinstance(value, Form):
        return value.of_user
    if isinstance(value, Blocks):
        return all(of_user(part) for part in value.parts)
    if isinstance(value, Folded):
        return value.form.of_user
    return of_user(value.value) if isinstance(value, Tall) else isinstance(value, User | Bare)


def whole(tensor: Tensor, *, of_user: bool, mixed: Mixed | None = None) -> Form:
    """Make the form of one tensor."""
    width = tensor.shape[-1]
    term = Term(Atom(tensor, of_user, mixed), 0, (0, width))
    return Form((term,), tuple(tensor.shape[1:-1]), width)


def add(left: Form, right: Form, sign: float = 1.0) -> Form:
    """The sum, or with `sign` -1 the difference, of forms of one shape."""
    other = scaled(right, sign) if sign != 1.0 else right
    offset = left.offset if other.offset is None else other.offset
    if left.offset is not None and other.offset is not None:
        offset = left.offset + other.offset
    middle = tuple(max(sizes) for sizes in zip(left.middle, right.middle, strict=True))
    return Form(left.terms + other.terms, middle, left.width, offset, left.helped | right.helped)


def scaled(form: Form, by: Tensor | float) -> Form:
    """The form times a number, or column by column times D numbers."""

    def scale(term: Term) -> Term:
        own = by[term.start : term.stop] if isinstance(by, Tensor) and by.ndim else by
        return replace(term, scale=term.scale * own)

    offset = None if form.offset is None else form.offset * by
    return replace(form, terms=tuple(map(scale, form.terms)), offset=offset)


def shifted(form: Form, by: Tensor) -> Form:
    """The form plus D constants."""
    return replace(form, offset=by if form.offset is None else form.offset + by)


def joined(forms: Sequence[Form]) -> Form:
    """The concatenation along the columns."""
    terms: list[Term] = []
    start = 0
    offsets = []
    for form in forms:
        terms += [replace(term, start=term.start + start) for term in form.terms]
        start += form.width
        some = next((f.offset for f in forms if f.offset is not None), None)
        if some is not None:
            offsets.append(form.offset if form.offset is not None else some.new_zeros(form.width))
    middle = tuple(max(sizes) for sizes in zip(*(form.middle for form in forms), strict=True))
    helped = frozenset().union(*(form.helped for form in forms))
    return Form(tuple(terms), middle, start, torch.cat(offsets) if offsets else None, helped)


def columns(form: Form, start: int, stop: int) -> Form:
    """The columns from `start` to before `stop`."""
    kept = []
    for term in form.terms:
        low, high = max(term.start, start), min(term.stop, stop)
        if low < high:
            first = term.cut[0] + low - term.start
            scale = term.scale
            if isinstance(scale, Tensor) and scale.ndim:
                scale = scale[low - term.start : high - term.start]
            kept.append(Term(term.atom, low - start, (first, first + high - low), scale))
    offset = None if form.offset is None else form.offset[start:stop]
    return Form(tuple(kept), form.middle, stop - start, offset, form.helped)


def helped_by(form: Form, name: str) -> Form:
    """The form, with what was moved out of the way."""
    return replace(form, helped=form.helped | {name})


def own_columns(form: Form) -> int:
    """Columns times positions of candidates' tensors that stand in the form, each counted once."""
    total = 0
    atoms = {id(term.atom.tensor): term.atom for term in form.terms if not term.atom.of_user}
    for key, atom in atoms.items():
        covered, end = 0, 0
        for start, stop in sorted(term.cut for term in form.terms if id(term.atom.tensor) == key):
            covered += max(0, stop - max(start, end))
            end = max(end, stop)
        total += covered * prod(int(size) for size in atom.tensor.shape[1:-1])
    return total


def whole_columns(form: Form) -> int:
    """Columns times positions of the form in the model, for one candidate."""
    return form.width * prod(int(size) for size in form.middle)


def compact(form: Form) -> Form:
    """Terms of one side that stand in the same columns are added up at their own rows."""
    groups: dict[tuple[bool, int, int, tuple[int, ...]], list[Term]] = {}
    for term in form.terms:
        key = (term.atom.of_user, term.start, term.stop, tuple(term.atom.tensor.shape[1:-1]))
        groups.setdefault(key, []).append(term)
    terms = []
    for (side, start, stop, _), members in groups.items():
        if len(members) == 1:
            terms += members
            continue
        total = reduce(torch.add, [tensor_of(member) for member in members])
        mixed = next((member.atom.mixed for member in members if member.atom.mixed), None)
        terms.append(Term(Atom(total, side, mixed), start, (0, stop - start)))
    return replace(form, terms=tuple(terms))


def saves(form: Form) -> bool:
    """Whether products with its candidates' atoms, one by one, cost less than one with the whole."""
    return own_columns(form) < whole_columns(form)


def tiles(form: Form) -> bool:
    """Whether every column belongs to exactly one term."""
    end = 0
    for term in sorted(form.terms, key=lambda term: term.start):
        if term.start != end:
            return False
        end = term.stop
    return end == form.width


def pieces(form: Form) -> list[Term]:
    """The terms of a form that tiles, from the first column on."""
    return sorted(form.terms, key=lambda term: term.start)


@dataclass(frozen=True, eq=False)
class Normed(Value):
    """A layer-normalised form: `(form - mean) * rstd * weight + bias` over the columns.

    `mean_B1` and `rstd_B1` are `(B, *middle, 1)`; weight and bias have D numbers.
    """

    form: Form
    mean_B1: Tensor
    rstd_B1: Tensor
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Blocks(Value):
    """A concatenation of values along an axis between the rows and the columns, or of numbers of fields.

    Args:
        parts: of `rank` axes; each has its own side.
        axis: 1 to below `rank`.
        lengths: of the parts along it.
        rank: number of axes.
    """

    parts: tuple[Value, ...]
    axis: int
    lengths: tuple[int, ...]
    rank: int


@dataclass(frozen=True, eq=False)
class Outer(Value):
    """A candidate's `(B, S, 1)` or `(B, 1, D)` times the user's `(R, S, D)`, not yet multiplied.

    `mixed`: where they met.
    """

    own: Row
    user: User
    mixed: Mixed


@dataclass(frozen=True, eq=False)
class Bare(Value):
    """The one row of a user's tensor `(1, ...)` that the model holds without its axis of rows."""

    user: User


@dataclass(frozen=True, eq=False)
class Tall(Value):
    """A value `(B, D)` that the model holds as `(B, D, 1)`."""

    value: Value


@dataclass(frozen=True, eq=False)
class Folded(Value):
    """A form `(B, *middle, D)` that the model holds as `(B * middle, D)`."""

    form: Form


def moments(form: Form, spread: Callable[[Tensor], Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation over the columns of a form that tiles, the user's part at R rows.

    Parts are put together by the pairwise update of Chan, Golub and LeVeque (1979), which has no sum of
    squares to lose digits in.
    """
    count, mean, squares = 0, None, None
    for term in pieces(form):
        if not term.width:
            continue  # no numbers have no mean
        part = tensor_of(term)
        if form.offset is not None:
            part = part + form.offset[term.start : term.stop]
        own_mean = part.mean(dim=-1, keepdim=True)
        own_squares = (part - own_mean).square().sum(dim=-1, keepdim=True)
        if term.atom.of_user:
            own_mean, own_squares = spread(own_mean), spread(own_squares)
        if mean is None or squares is None:
            count, mean, squares = term.width, own_mean, own_squares
            continue
        total = count + term.width
        apart = own_mean - mean
        squares = squares + own_squares + apart.square() * (count * term.width / total)
        mean = mean + apart * (term.width / total)
        count = total
    if mean is None or squares is None:
        raise ValueError("a form without terms has no mean")
    return mean, (squares / count + epsilon).rsqrt()


def tensor_of(term: Term) -> Tensor:
    """The term's numbers at the atom's own rows."""
    tensor = term.atom.tensor
    if term.cut != (0, tensor.shape[-1]):
        tensor = tensor[..., term.cut[0] : term.cut[1]]
    if isinstance(term.scale, Tensor) or term.scale != 1.0:
        tensor = tensor * term.scale
    return tensor


def assembled(form: Form, spread: Callable[[Tensor], Tensor], rows: int | torch.SymInt) -> Tensor:
    """The whole tensor `(rows, *middle, width)`.

    Args:
        form: of any terms.
        spread: repeats a tensor of R rows for the rows asked for.
        rows: B, or R for a form of the user alone.
    """
    full = (rows, *form.middle)
    if tiles(form):
        parts = [_at(term, spread) for term in pieces(form)]
        if len(parts) > 1:
            parts = [torch.cat([part.expand(*full, part.shape[-1]) for part in parts], dim=-1)]
    else:
        parts = [_padded(_at(term, spread), term, form.width) for term in form.terms]
    total = reduce(torch.add, parts)
    total = total if form.offset is None else total + form.offset
    return total.expand(*full, form.width)


def _padded(part: Tensor, term: Term, width: int) -> Tensor:
    if term.width == width:
        return part
    return torch.nn.functional.pad(part, (term.start, width - term.stop))


def _at(term: Term, spread: Callable[[Tensor], Tensor]) -> Tensor:
    tensor = tensor_of(term)
    return spread(tensor) if term.atom.of_user else tensor
