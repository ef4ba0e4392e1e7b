"""MaRI (arXiv 2602.23105): requests and scores as bytes, for machines: no text is parsed, no array is copied.

All numbers are little-endian, and every part starts at a multiple of 8 bytes; the bytes between are 0.

    request                                     answer
    at  size  header                            at  size  header
     0     4  b"MaRQ"                            0     4  b"MaRS"
     4     2  version, 1                         4     2  version, 1
     6     2  bytes before the first array       6     2  bytes before the scores, 32
     8     4  flags, 0                           8     4  flags, 0
    12     4  number of inputs                  12     4  number of outputs, T
    16     8  number of candidates              16     8  number of candidates
    24     8  fingerprint of the schema, or 0   24     8  bytes of the whole answer
    32     8  bytes of the whole request        32        scores, float32 (candidates, T)
    40        8 bytes for each input:
               4  numbers in a row
               1  1 = float32, 2 = int64
               1  0 = the user's, 1 = the candidates'
               2  0
    then the values of the inputs in the order of the schema: one row, or one row per candidate

A reader refuses every version but its own. With the fingerprint a client says for which inputs it was
written (names, order, ids, outputs), so that after a change of the model it gets 409 and not a wrong score.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from feedworks.mari.request import Array, Request, RequestError, RequestReader
from feedworks.mari.schema import RankerSchema

REQUEST_MAGIC, SCORES_MAGIC = b"MaRQ", b"MaRS"
VERSION = 1
_REQUEST = struct.Struct("<4sHHIIQQQ")
_INPUT = struct.Struct("<IBBH")
_SCORES = struct.Struct("<4sHHIIQQ")
_CODES = {"float32": 1, "int64": 2}
_ALIGN = 8


class WireError(RequestError):
    """Bytes that are no request, or no scores; the message says why."""


class FingerprintError(WireError):
    """The client was written for a model with other inputs or outputs."""

    status = 409


def fingerprint(schema: RankerSchema) -> int:
    """Say in 64 bits what a model takes and returns; never 0, which stands for "not checked"."""
    told = schema.model_dump(mode="json", exclude={"max_candidates"})
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "little") or 1


def pack_request(schema: RankerSchema, user: Mapping[str, Any], candidates: Mapping[str, Any]) -> bytes:
    """Build the body of one request; see `Wire.pack` where there are many."""
    return Wire(schema).pack(RequestReader(schema).from_arrays(user, candidates))


class Wire:
    """Reads and writes the requests of one model.

    Args:
        schema: what the model takes.
    """

    def __init__(self, schema: RankerSchema) -> None:
        self.schema = schema
        self.fingerprint = fingerprint(schema)
        self._reader = RequestReader(schema)
        self._table = b"".join(
            _INPUT.pack(each.width, _CODES[each.dtype], 0 if each.of_user else 1, 0) for each in schema.inputs
        )
        self._header_bytes = _REQUEST.size + len(self._table)
        self._inputs = [
            (dtype.newbyteorder("<"), each.shape, each.width, each.of_user)
            for each, dtype in zip(schema.inputs, self._reader.dtypes, strict=True)
        ]

    def max_bytes(self) -> int:
        """Bytes of the largest request."""
        return self._num_bytes(self.schema.max_candidates)

    def pack(self, request: Request) -> bytes:
        """Write a request.

        Args:
            request: as a `RequestReader` of the same schema makes it.
        """
        total = self._num_bytes(request.num_candidates)
        parts = [self._header(request.num_candidates, total), self._table]
        for (dtype, *_), x in zip(self._inputs, request.arrays, strict=True):
            data = np.ascontiguousarray(x, dtype).tobytes()
            parts += [data, bytes(-len(data) % _ALIGN)]
        return b"".join(parts)

    def unpack(self, body: bytes) -> Request:
        """Read a request; its arrays look into `body`, which they keep alive.

        Raises:
            WireError: the bytes are no request for this model.
            RequestError: a number is not finite, or an id out of range.
        """
        num_candidates = self._num_candidates(body)
        arrays: list[Array] = []
        start = self._header_bytes
        for dtype, shape, width, of_user in self._inputs:
            count = width if of_user else width * num_candidates
            x = np.frombuffer(body, dtype, count, start)
            arrays.append(x.reshape(shape if of_user else (num_candidates, *shape)))
            end = start + count * dtype.itemsize
            start = end + -end % _ALIGN
            if start > end and any(body[end:start]):
                raise WireError(f"bytes {end} to {start} stand between two arrays and are not 0")
        self._reader.check(arrays)
        return Request(tuple(arrays), num_candidates)

    def _num_bytes(self, num_candidates: int) -> int:
        sizes = [
            (width if of_user else width * num_candidates) * dtype.itemsize
            for dtype, _, width, of_user in self._inputs
        ]
        return self._header_bytes + sum(size + -size % _ALIGN for size in sizes)

    def _header(self, num_candidates: int, total: int) -> bytes:
        sizes = (self._header_bytes, 0, len(self._inputs), num_candidates, self.fingerprint, total)
        return _REQUEST.pack(REQUEST_MAGIC, VERSION, *sizes)

    def _num_candidates(self, body: bytes) -> int:
        """Check the header and the table; return how many candidates there are."""
        if len(body) < _REQUEST.size:
            raise WireError(f"the body ends in its header: {len(body)} bytes, expected {self._header_bytes}")
        header = _REQUEST.unpack_from(body)
        magic, version, header_bytes, flags, num_inputs, num_candidates, schema, total = header
        _check_start(magic, REQUEST_MAGIC, version, flags)
        if num_inputs != len(self._inputs) or header_bytes != self._header_bytes:
            wanted = f"{len(self._inputs)} inputs and a header of {self._header_bytes} bytes"
            raise WireError(f"expected {wanted}, got {num_inputs} and {header_bytes}")
        if schema not in (0, self.fingerprint):
            raise FingerprintError(
                f"the request is for a model with other inputs: fingerprint {schema:016x}, "
                f"this one has {self.fingerprint:016x}; see GET /schema"
            )
        self._reader.check_count(num_candidates)
        if len(body) < header_bytes:
            raise WireError(f"the body ends in its table of inputs: {len(body)} bytes")
        if body[_REQUEST.size : header_bytes] != self._table:
            raise WireError(self._explain(body[_REQUEST.size : header_bytes]))
        wanted_bytes = self._num_bytes(num_candidates)
        if not len(body) == total == wanted_bytes:
            raise WireError(
                f"expected {wanted_bytes} bytes for {num_candidates} candidates; "
                f"the header says {total}, the body has {len(body)}"
            )
        return int(num_candidates)

    def _explain(self, table: bytes) -> str:
        """Where a table of inputs differs from ours."""
        tables = _INPUT.iter_unpack(self._table), _INPUT.iter_unpack(table)
        names = "numbers in a row, dtype (1 float32, 2 int64), side (0 user, 1 candidates), 0"
        return "; ".join(
            f"input {each.name}: expected {ours} = ({names}), got {theirs}"
            for each, ours, theirs in zip(self.schema.inputs, *tables, strict=True)
            if ours != theirs
        )


def pack_scores(score_BT: npt.NDArray[np.float32]) -> bytes:
    """Write the scores of a request, `(B, T)`."""
    num_candidates, num_outputs = score_BT.shape
    data = np.ascontiguousarray(score_BT, "<f4").tobytes()
    total = _SCORES.size + len(data)
    return _SCORES.pack(SCORES_MAGIC, VERSION, _SCORES.size, 0, num_outputs, num_candidates, total) + data


def unpack_scores(body: bytes) -> npt.NDArray[np.float32]:
    """Read scores `(B, T)`; the array looks into `body`.

    Raises:
        WireError: the bytes are no scores.
    """
    if len(body) < _SCORES.size:
        raise WireError(f"the answer ends in its header: {len(body)} bytes, expected {_SCORES.size}")
    magic, version, header_bytes, flags, num_outputs, num_candidates, total = _SCORES.unpack_from(body)
    _check_start(magic, SCORES_MAGIC, version, flags)
    wanted = _SCORES.size + 4 * num_outputs * num_candidates
    if header_bytes != _SCORES.size or not len(body) == total == wanted:
        raise WireError(f"expected {wanted} bytes; the header says {total}, the answer has {len(body)}")
    score_BT = np.frombuffer(body, "<f4", num_outputs * num_candidates, _SCORES.size)
    return score_BT.reshape(num_candidates, num_outputs)


def _check_start(magic: bytes, wanted: bytes, version: int, flags: int) -> None:
    if magic != wanted:
        raise WireError(f"expected bytes that begin with {wanted!r}, got {magic!r}")
    if version != VERSION:
        raise WireError(f"expected version {VERSION}, got {version}")
    if flags:
        raise WireError(f"unknown flags {flags:#x}")
