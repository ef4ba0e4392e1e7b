"""Requests as JSON and as arrays: the same arrays as in bytes; wrong ones are refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.mari.request import RequestError, RequestReader
from feedworks.mari.schema import RankerSchema

from .asked import MAX_CANDIDATES, SCHEMA, draw, listed

READER = RequestReader(SCHEMA)


def body_of(num_candidates: int = 3, seed: int = 0) -> dict[str, Any]:
    user, candidates = draw(SCHEMA, num_candidates, seed)
    return {"user": listed(user), "candidates": listed(candidates)}


GOOD = json.dumps(body_of())


@pytest.mark.parametrize("num_candidates", [1, 2, MAX_CANDIDATES])
def test_json_and_arrays_give_the_same_request(num_candidates: int) -> None:
    user, candidates = draw(SCHEMA, num_candidates, seed=1)
    wanted = [{**user, **candidates}[each.name] for each in SCHEMA.inputs]
    body = json.dumps({"user": listed(user), "candidates": listed(candidates)}).encode()
    for request in (READER.from_arrays(user, candidates), READER.from_json(body)):
        assert request.num_candidates == num_candidates
        for x, each, value in zip(request.arrays, SCHEMA.inputs, wanted, strict=True):
            assert x.dtype == each.dtype
            assert x.shape == (each.shape if each.of_user else (num_candidates, *each.shape))
            assert np.array_equal(x, value)


def test_whole_numbers_are_numbers() -> None:
    body = body_of()
    body["user"]["age"], body["candidates"]["price"] = 7, [1, 2.5, -3]
    arrays = READER.from_json(json.dumps(body).encode()).arrays
    assert arrays[0] == 7
    assert arrays[4].tolist() == [1, 2.5, -3]


WRONG_JSON = {
    "empty": ("", "no JSON"),
    "cut off": (GOOD[:-3], "no JSON"),
    "not utf-8": (b'{"user": "\xff"}', "no JSON"),
    "more after it": (GOOD + "x", "no JSON"),
    "nested deeply": ("[" * 100_000, "no JSON"),
    "deep in place": (GOOD.replace('"age": ', '"age": ' + "[" * 5000), "no JSON"),
    "NaN": (GOOD.replace('"age": ', '"age": NaN, "x": '), "no JSON"),
    "10,000 digits": (GOOD.replace('"age": ', '"age": ' + "9" * 10_000), "no JSON"),
    "null": ("null", "expected an object"),
    "a list": ("[1, 2]", "expected an object"),
    "no user": ('{"candidates": {}}', "expected an object"),
    "something else": (GOOD[:-1] + ', "k": 1}', "expected an object"),
    "user twice": (GOOD[:-1] + ', "user": {}}', '"user": inputs that are missing: age'),
    "user twice, both good": (GOOD[:-1] + GOOD[GOOD.index("{") + 1 :].join([", ", ""]), "stands twice"),
    "input twice": (GOOD.replace('"age"', '"age": 1, "age"'), "stands twice"),
    "input twice, escaped": (GOOD.replace('"age"', r'"\u0061ge": 1, "age"'), "stands twice"),
    "lone surrogate": (GOOD.replace('"age"', r'"\ud800"'), "no JSON|unknown"),
}


@pytest.mark.parametrize(("body", "why"), WRONG_JSON.values(), ids=WRONG_JSON.keys())
def test_wrong_json_is_refused_with_the_reason(body: str | bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why) as error:
        READER.from_json(body if isinstance(body, bytes) else body.encode())
    assert len(str(error.value)) < 500


def user(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["user"].update({name: value})


def candidates(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["candidates"].update({name: value})


WRONG = {
    "unknown input": (user("x", 1), "unknown: x"),
    "10,000 unknown inputs": (lambda b: b["user"].update({str(i): 1 for i in range(9999)}), "unknown: 0, 1"),
    "missing input": (lambda b: b["candidates"].pop("price"), "missing: price"),
    "input of the other side": (lambda b: b["user"].update(price=b["candidates"].pop("price")), "missing"),
    "user is a list": (lambda b: b.update(user=[1]), '"user" is no object'),
    "candidates is null": (lambda b: b.update(candidates=None), '"candidates" is no object'),
    "too narrow": (user("user", [1.0, 2.0]), r"user.user: expected 3 values in a list, got 2; shape \(3,\)"),
    "too wide": (candidates("match", [[[0.0] * 4] * 2] * 3), "candidates.match: expected 3 values"),
    "ragged": (candidates("item", [[0, 0], [0], [0, 0]]), "candidates.item: expected 2 values"),
    "flat": (candidates("item", [0, 0, 0]), "expected 2 values in a list, got a number"),
    "deeper": (candidates("price", [[1.0], [1.0], [1.0]]), "expected numbers, got a list"),
    "an object for a row": (candidates("item", [{}, {}, {}]), "got an object"),
    "another count": (candidates("price", [1.0, 2.0]), "expected 3 values"),
    "no list": (candidates("item", 3), "expected a list"),
    "no candidates": (lambda b: b["candidates"].update(item=[], price=[], match=[]), "1 to 50.*got 0"),
    "too many candidates": (lambda b: b.update(body_of(51)), "1 to 50 candidates, got 51"),
    "text": (user("age", "1"), "expected numbers, got text"),
    "true": (user("age", True), "got a truth value"),
    "false among numbers": (candidates("price", [1.0, False, 0]), "got a truth value"),
    "true for an id": (user("history", [1, True, 0, 0]), "expected whole numbers, got a truth value"),
    "null": (user("user", [1.0, None, 2.0]), "got null"),
    "1.0 for an id": (user("history", [1.0, 0, 0, 0]), "got a fraction"),
    "2**63": (user("history", [2**63, 0, 0, 0]), "too large for int64"),
    "2**64 - 1": (user("history", [2**64 - 1, 0, 0, 0]), "too large for int64"),
    "negative id": (user("history", [0, 0, 0, -1]), "user.history, place 3: -1 is no id"),
    "id out of range": (user("history", [0, 9, 0, 0]), "user.history, place 1: 9 is no id"),
    "id of another field": (candidates("item", [[8, 4], [4, 8], [0, 0]]), "candidate 1, field shop: 8"),
    "beyond float32": (user("age", 1e39), "user.age: inf is not a finite float32"),
    "beyond float64": (user("age", 10**400), "too large for float32|no JSON"),
    "-1e39": (candidates("price", [1, 2, -1e39]), "candidates.price, candidate 2: -inf"),
}


@pytest.mark.parametrize(("change", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_refused_with_its_place(
    change: Callable[[dict[str, Any]], object], why: str
) -> None:
    body = body_of()
    change(body)
    with pytest.raises(RequestError, match=why) as error:
        READER.from_json(json.dumps(body).encode())
    assert len(str(error.value)) < 500
    assert error.value.status == 400


WRONG_ARRAYS = {
    "dtype": (candidates("item", np.zeros((3, 2))), "as int64, got float64"),
    "truths": (candidates("price", np.zeros(3, bool)), "as float32, got bool"),
    "text": (user("age", "x"), "as float32"),
    "ragged": (candidates("item", [[0, 0], [0], [0, 0]]), "candidates.item"),
    "shape": (user("user", np.zeros(4)), r"expected shape \(3,\), got \(4,\)"),
    "a row axis": (user("user", np.zeros((1, 3))), "expected shape"),
    "lengths": (candidates("price", np.zeros(2)), r"different lengths: \[2, 3\]"),
    "unsigned": (candidates("item", np.zeros((3, 2), np.uint64)), "got uint64"),
    "NaN": (user("age", np.nan), "not a finite"),
    "beyond float32": (user("age", 1e39), "not a finite"),
    "missing": (lambda b: b["user"].pop("age"), "missing: age"),
    "an id out of range": (user("history", [0, 0, 9, 0]), "no id"),
}


@pytest.mark.parametrize(("change", "why"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS.keys())
def test_wrong_arrays_are_refused(change: Callable[[dict[str, Any]], object], why: str) -> None:
    user, candidates = draw(SCHEMA, 3, seed=0)
    change({"user": user, "candidates": candidates})
    with pytest.raises(RequestError, match=why):
        READER.from_arrays(user, candidates)


def test_ids_without_sizes_may_be_any() -> None:
    free = SCHEMA.inputs[2].model_copy(update={"sizes": ()})
    schema = RankerSchema(inputs=(free, *SCHEMA.inputs[3:]), max_candidates=5)
    user, candidates = draw(schema, 2, seed=0)
    user["history"] = [-1, 2**62, 0, 0]
    assert RequestReader(schema).from_arrays(user, candidates).arrays[0].tolist() == user["history"]


# Training flushes subnormal numbers to zero for the rest of a process, which may be that of other tests too.
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(SCHEMA.inputs), junk)
def test_any_json_in_any_place_is_refused_or_right(each: Any, value: Any) -> None:
    body = body_of(2)
    body["user" if each.of_user else "candidates"][each.name] = value
    try:
        request = READER.from_json(json.dumps(body).encode())
    except RequestError:
        return
    found = request.arrays[SCHEMA.inputs.index(each)]
    assert np.array_equal(found, np.array(value, found.dtype))
    READER.check(request.arrays)
