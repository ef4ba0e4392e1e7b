"""MaRI (arXiv 2602.23105): one request to score candidates, as arrays that the model can take safely.

Whatever a request came as, bytes, JSON or arrays, it passes here: widths, finite numbers, ids in range. What
passes cannot make the model read outside its tables or answer with a score of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydantic_core

from feedworks.errors import FeedworksError
from feedworks.mari.schema import ModelInput, RankerSchema

Array = npt.NDArray[Any]


class RequestError(FeedworksError):
    """A request that cannot be scored; the message says why.

    Attributes:
        status: HTTP status of the answer.
    """

    status = 400


class Request(NamedTuple):
    """Arrays in the order of the schema: a user's `(*shape)`, the others `(num_candidates, *shape)`."""

    arrays: tuple[Array, ...]
    num_candidates: int


class RequestReader:
    """Makes requests for one model, and refuses what it cannot score.

    Args:
        schema: what the model takes.
    """

    def __init__(self, schema: RankerSchema) -> None:
        self.schema = schema
        self.dtypes = tuple(np.dtype(each.dtype) for each in schema.inputs)
        self._sides = {
            side: {each.name for each in schema.inputs if each.of_user == (side == "user")}
            for side in ("user", "candidates")
        }
        self._checks = [
            (each, np.array(each.sizes, np.uint64) if each.sizes else None) for each in schema.inputs
        ]
        # Two quotes around each name that a request has; more are names that stand twice.
        self._num_quotes = 2 * (2 + len(schema.inputs))

    def from_arrays(self, user: Mapping[str, Any], candidates: Mapping[str, Any]) -> Request:
        """Build a request from what numpy can read.

        Args:
            user: value `(*shape)` of each input of the user's side by name.
            candidates: values `(num_candidates, *shape)` of each other input by name.

        Raises:
            RequestError: a name, dtype, shape or number is wrong.
        """
        parts = {"user": user, "candidates": candidates}
        self._check_names(parts)
        arrays = tuple(_cast(each, parts[_side(each)][each.name]) for each in self.schema.inputs)
        return self._checked(arrays)

    def from_json(self, body: bytes) -> Request:
        """Read `{"user": {name: values}, "candidates": {name: [values of each candidate]}}`.

        Raises:
            RequestError: it is no JSON, or a name, type, shape or number is wrong.
        """
        try:
            parts = pydantic_core.from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise RequestError(f"the body is no JSON: {error}") from None
        if not isinstance(parts, dict) or parts.keys() != self._sides.keys():
            raise RequestError('expected an object with "user" and "candidates", and nothing else')
        self._check_names(parts)
        num_candidates = self._count(parts["candidates"])
        arrays = tuple(
            _parse(each, dtype, parts[_side(each)][each.name], num_candidates)
            for each, dtype in zip(self.schema.inputs, self.dtypes, strict=True)
        )
        if body.count(b'"') != self._num_quotes:
            raise RequestError("a name stands twice in an object")
        self.check(arrays)
        return Request(arrays, num_candidates)

    def check_count(self, num_candidates: int) -> None:
        """Refuse a number of candidates that the model does not take.

        Raises:
            RequestError: there is none, or there are too many.
        """
        if not 0 < num_candidates <= self.schema.max_candidates:
            raise RequestError(f"expected 1 to {self.schema.max_candidates} candidates, got {num_candidates}")

    def check(self, arrays: Sequence[Array]) -> None:
        """Refuse numbers that are not finite, and ids that the model does not have.

        Args:
            arrays: in the order of the schema, right in shape and dtype.

        Raises:
            RequestError: names the first place that is wrong.
        """
        for (each, size_F), x in zip(self._checks, arrays, strict=True):
            if each.dtype == "float32":
                if not np.isfinite(x).all():
                    raise _wrong(each, x, ~np.isfinite(x), "is not a finite float32 number")
            # A negative id, read without a sign, is beyond every size.
            elif size_F is not None and (wrong := x.view(np.uint64) >= size_F).any():
                raise _wrong(each, x, wrong, "is no id that the model has")

    def _checked(self, arrays: tuple[Array, ...]) -> Request:
        counts = {len(x) for each, x in zip(self.schema.inputs, arrays, strict=True) if not each.of_user}
        if len(counts) > 1:
            raise RequestError(f"inputs of candidates have different lengths: {sorted(counts)}")
        self.check_count(*counts)
        self.check(arrays)
        return Request(arrays, *counts)

    def _check_names(self, parts: Mapping[str, Any]) -> None:
        for side, names in self._sides.items():
            part = parts[side]
            if not isinstance(part, Mapping):
                raise RequestError(f'"{side}" is no object')
            if part.keys() != names:
                missing = ", ".join(sorted(names - part.keys())) or "none"
                unknown = ", ".join(sorted(str(name)[:40] for name in part.keys() - names)[:10]) or "none"
                raise RequestError(f'"{side}": inputs that are missing: {missing}; unknown: {unknown}')

    def _count(self, candidates: Mapping[str, Any]) -> int:
        name, first = next(iter(candidates.items()))
        if not isinstance(first, list):
            raise RequestError(f"candidates.{name}: expected a list with the values of each candidate")
        self.check_count(len(first))
        return len(first)


def _side(each: ModelInput) -> str:
    return "user" if each.of_user else "candidates"


def _cast(each: ModelInput, value: Any) -> Array:
    try:
        x = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise RequestError(f"{_side(each)}.{each.name}: {error}") from None
    kinds = "iu" if each.dtype == "int64" else "fiu"
    if x.dtype.kind not in kinds or (each.dtype == "int64" and x.dtype == np.uint64):
        raise RequestError(f"{_side(each)}.{each.name}: expected numbers as {each.dtype}, got {x.dtype}")
    rows = 0 if each.of_user else 1
    if x.ndim != len(each.shape) + rows or x.shape[rows:] != each.shape:
        wanted = each.shape if each.of_user else ("candidates", *each.shape)
        raise RequestError(f"{_side(each)}.{each.name}: expected shape {wanted}, got {x.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        return np.ascontiguousarray(x, each.dtype).reshape(x.shape)


def _parse(each: ModelInput, dtype: np.dtype[Any], value: Any, num_candidates: int) -> Array:
    """JSON lists to an array; strings, truths and nulls are no numbers, 1.0 is no id."""
    shape = each.shape if each.of_user else (num_candidates, *each.shape)
    where = f"{_side(each)}.{each.name}"
    level = [value]
    for size in shape:
        for part in level:
            if type(part) is not list or len(part) != size:
                got = f"{len(part)}" if type(part) is list else _kind(part)
                raise RequestError(f"{where}: expected {size} values in a list, got {got}; shape {shape}")
        level = list(chain.from_iterable(level))
    allowed = {int} if each.dtype == "int64" else {int, float}
    if not allowed.issuperset(map(type, level)):
        wrong = next(part for part in level if type(part) not in allowed)
        noun = "whole numbers" if each.dtype == "int64" else "numbers"
        raise RequestError(f"{where}: expected {noun}, got {_kind(wrong)}; shape {shape}")
    try:
        with np.errstate(over="ignore"):
            return np.array(level, dtype).reshape(shape)
    except OverflowError:
        raise RequestError(f"{where}: a number is too large for {each.dtype}") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", float: "a fraction"}
    return "null" if value is None else names.get(type(value), "a number")


def _wrong(each: ModelInput, x: Array, wrong: npt.NDArray[np.bool_], why: str) -> RequestError:
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    parts = [f"{_side(each)}.{each.name}"]
    if not each.of_user:
        parts.append(f"candidate {place[0]}")
    if each.fields:
        parts.append(f"field {each.fields[place[-1]]}")
    elif each.shape:
        parts.append(f"place {', '.join(map(str, place[not each.of_user :]))}")
    return RequestError(f"{', '.join(parts)}: {x[place]} {why}")
