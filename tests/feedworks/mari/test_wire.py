"""The binary form: what is written is read; whatever else comes is refused with the reason."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.mari.request import Request, RequestError, RequestReader
from feedworks.mari.wire import (
    FingerprintError,
    Wire,
    WireError,
    fingerprint,
    pack_request,
    pack_scores,
    unpack_scores,
)

from .asked import MAX_CANDIDATES, SCHEMA, draw

WIRE = Wire(SCHEMA)
HEADER = 40 + 8 * len(SCHEMA.inputs)
BODY = pack_request(SCHEMA, *draw(SCHEMA, 3, seed=0))


def equal(one: Request, other: Request) -> bool:
    same = all(np.array_equal(a, b) for a, b in zip(one.arrays, other.arrays, strict=True))
    return one.num_candidates == other.num_candidates and same


def changed(at: int, form: str, value: int) -> bytes:
    body = bytearray(BODY)
    struct.pack_into("<" + form, body, at, value)
    return bytes(body)


@pytest.mark.parametrize("num_candidates", [1, 2, 3, MAX_CANDIDATES])
def test_what_is_packed_is_unpacked(num_candidates: int) -> None:
    request = RequestReader(SCHEMA).from_arrays(*draw(SCHEMA, num_candidates, seed=1))
    body = WIRE.pack(request)
    found = WIRE.unpack(body)
    assert equal(found, request)
    assert [x.dtype for x in found.arrays] == [np.dtype(each.dtype) for each in SCHEMA.inputs]
    assert len(body) <= WIRE.max_bytes()
    assert (len(body) == WIRE.max_bytes()) == (num_candidates == MAX_CANDIDATES)


def test_arrays_are_views_of_the_body_at_multiples_of_8() -> None:
    start = np.frombuffer(BODY, np.uint8).ctypes.data
    places = [x.ctypes.data - start for x in WIRE.unpack(BODY).arrays]
    assert places[0] == HEADER
    assert all(place % 8 == 0 and place < len(BODY) for place in places)


def test_the_documented_layout() -> None:
    """Read by hand, as a client in another language would."""
    user, candidates = draw(SCHEMA, 3, seed=0)
    assert struct.unpack_from("<4sHHIIQQQ", BODY) == (
        *(b"MaRQ", 1, HEADER, 0, 6, 3),
        *(fingerprint(SCHEMA), len(BODY)),
    )
    table = [struct.unpack_from("<IBBH", BODY, 40 + 8 * place) for place in range(6)]
    assert table == [(1, 1, 0, 0), (3, 1, 0, 0), (4, 2, 0, 0), (2, 2, 1, 0), (1, 1, 1, 0), (6, 1, 1, 0)]
    assert struct.unpack_from("<f", BODY, HEADER)[0] == user["age"]
    assert struct.unpack_from("<3f", BODY, HEADER + 8) == tuple(user["user"])
    assert struct.unpack_from("<4q", BODY, HEADER + 24) == tuple(user["history"])
    assert struct.unpack_from("<6q", BODY, HEADER + 56) == tuple(candidates["item"].ravel())
    assert struct.unpack_from("<3f", BODY, HEADER + 104) == tuple(candidates["price"])


WRONG = {
    "empty": (b"", "ends in its header"),
    "half a header": (BODY[:39], "ends in its header: 39 bytes, expected 88"),
    "magic": (changed(0, "I", 1), "begin with"),
    "scores": (pack_scores(np.zeros((9, 1), np.float32)), "begin with"),
    "version 2": (changed(4, "H", 2), "version 1, got 2"),
    "header size": (changed(6, "H", 48), "header of 88 bytes"),
    "flags": (changed(8, "I", 1), "unknown flags 0x1"),
    "inputs": (changed(12, "I", 7), "expected 6 inputs"),
    "no candidates": (changed(16, "Q", 0), "1 to 50 candidates, got 0"),
    "too many": (changed(16, "Q", 51), "got 51"),
    "2**63 candidates": (changed(16, "Q", 2**63), "1 to 50"),
    "another count": (changed(16, "Q", 2), "bytes for 2 candidates"),
    "total": (changed(32, "Q", len(BODY) + 8), "the header says"),
    "width": (changed(40 + 8, "I", 4), r"input user: expected \(3, 1, 0, 0\)"),
    "dtype": (changed(40 + 16 + 4, "B", 1), "input history"),
    "side": (changed(40 + 24 + 5, "B", 0), "input item"),
    "reserved": (changed(40 + 40 + 6, "H", 1), "input match"),
    "cut in the table": (BODY[:50], "ends in its table"),
    "cut": (BODY[:-1], "the body has"),
    "too long": (BODY + b"\0", "the body has"),
    "padding": (changed(HEADER + 4, "I", 5), "stand between two arrays"),
    "NaN": (changed(HEADER + 8, "I", 0x7FC00000), "user.user, field a: nan is not a finite"),
    "inf": (changed(HEADER + 104, "I", 0x7F800000), "candidates.price, candidate 0: inf"),
    "negative id": (changed(HEADER + 24, "q", -1), "user.history, place 0: -1 is no id"),
    "id too large": (changed(HEADER + 56 + 24, "q", 5), "candidates.item, candidate 1, field shop: 5"),
    "huge id": (changed(HEADER + 24, "Q", 2**63), "is no id"),
}


@pytest.mark.parametrize(("body", "why"), WRONG.values(), ids=WRONG.keys())
def test_wrong_bytes_are_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        WIRE.unpack(body)


def test_a_client_of_another_model_is_refused() -> None:
    assert WIRE.unpack(changed(24, "Q", 0)).num_candidates == 3  # 0: not checked
    with pytest.raises(FingerprintError, match="GET /schema") as error:
        WIRE.unpack(changed(24, "Q", 1))
    assert error.value.status == 409
    same_shapes = SCHEMA.model_copy(update={"outputs": ("like", "click")})
    with pytest.raises(FingerprintError):
        Wire(same_shapes).unpack(BODY)


def test_the_fingerprint_is_of_the_inputs_and_outputs() -> None:
    assert fingerprint(SCHEMA) == fingerprint(SCHEMA.model_copy(update={"max_candidates": 7}))
    swapped = SCHEMA.model_copy(update={"inputs": SCHEMA.inputs[::-1]})
    assert fingerprint(SCHEMA) != fingerprint(swapped)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=len(BODY) + 40))
def test_noise_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        WIRE.unpack(body)


@st.composite
def mutated(draw_: st.DrawFn) -> bytes:
    """A good body with bytes changed, cut out or put in."""
    body = bytearray(BODY)
    for _ in range(draw_(st.integers(1, 4))):
        at = draw_(st.integers(0, len(body)))
        kind = draw_(st.sampled_from(["change", "cut", "drop", "insert"]))
        if kind == "change" and at < len(body):
            body[at] = draw_(st.integers(0, 255))
        elif kind == "cut":
            del body[at:]
        elif kind == "drop":
            del body[at : at + draw_(st.sampled_from([1, 4, 8]))]
        else:
            body[at:at] = draw_(st.binary(max_size=16))
    return bytes(body)


@settings(max_examples=3000, deadline=None)
@given(mutated())
def test_mutated_bytes_are_refused_or_mean_exactly_what_they_say(body: bytes) -> None:
    """There is one body for each request: what is read, written again, is the same bytes."""
    try:
        request = WIRE.unpack(body)
    except RequestError:
        return
    RequestReader(SCHEMA).check(request.arrays)
    unchecked = bytes(8)
    again = WIRE.pack(request)
    assert body[24:32] in (unchecked, again[24:32])
    assert body[:24] + body[32:] == again[:24] + again[32:]


@pytest.mark.parametrize("shape", [(1, 1), (7, 2), (100, 3)])
def test_scores_go_there_and_back(shape: tuple[int, int]) -> None:
    score_BT = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert np.array_equal(unpack_scores(pack_scores(score_BT)), score_BT)


@pytest.mark.parametrize("cut", [0, 10, 32, 39])
def test_cut_scores_are_refused(cut: int) -> None:
    with pytest.raises(WireError):
        unpack_scores(pack_scores(np.zeros((2, 1), np.float32))[:cut])


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 39), st.integers(1, 255))
def test_a_flipped_byte_of_scores_is_refused_or_a_score(at: int, flip: int) -> None:
    body = bytearray(pack_scores(np.zeros((2, 1), np.float32)))
    body[at] ^= flip
    if at >= 32:
        assert unpack_scores(bytes(body)).shape == (2, 1)
    else:
        with pytest.raises(WireError):
            unpack_scores(bytes(body))
