"""MaRI (arXiv 2602.23105): proof that a twin equals its model, on samples.

Sums are taken in another order, so bits differ. Both are therefore compared with the model in float64: in
float32 each output must agree within `rtol` and `atol`; in 16 bits the twin's error against float64, as the
root of its mean square over all samples, may be at most twice the model's own: on a few rows either may come
out exact by chance. And no two candidates whose scores lie further apart than a gap may change places.

Shape legend: B rows, T outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from feedworks.mari.onnx_file import onnx_session
from feedworks.mari.programs import weights_of
from feedworks.mari.samples import Sample, tiled
from feedworks.mari.schema import RankerSchema
from feedworks.mari.twin import Twin

_EXACT = 1e-9  # in float64


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One sample in one type.

    Attributes:
        dtype: the type that both ran in.
        graph: `one` request or `many`.
        rows: B.
        error: largest absolute difference between twin and model.
        twin_error: between twin and the model in float64.
        model_error: between model and the model in float64.
        twin_rms: root of the mean square of the twin's error.
        model_rms: the same of the model's.
        score_rms: the same of the scores in float64.
        swapped: pairs of candidates of one request, further apart than the gap, that changed places.
        equal: the verdict.
    """

    dtype: str
    graph: str
    rows: int
    error: float
    twin_error: float
    model_error: float
    twin_rms: float
    model_rms: float
    score_rms: float
    swapped: int
    equal: bool


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When scores count as equal.

    Attributes:
        rtol: relative, in float32.
        atol: absolute, in float32.
        low_ratio: in 16 bits, how many times the model's own error the twin's may be.
        gap: scores that lie further apart in float64 must keep their order.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    low_ratio: float = 2.0
    gap: float = 1e-4


def verify(
    program: ExportedProgram,
    twin: Twin,
    schema: RankerSchema,
    samples: Sequence[Sample],
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
    tolerance: Tolerance | None = None,
) -> list[Comparison]:
    """Score samples with the model and its twin and compare.

    Args:
        program: the exported model.
        twin: of that model.
        schema: of both.
        samples: of one request or of several.
        dtypes: the types to run in.
        tolerance: when scores count as equal.
    """
    found = []
    for sample in samples:
        several = len(set(sample.request_B.tolist())) > 1
        given = (sample.request_B, *sample.inputs) if several else sample.inputs
        truth_BT = _scores(program, tiled(schema, sample), torch.float64)
        for name in dtypes:
            dtype = getattr(torch, name)
            model_BT = _scores(program, tiled(schema, sample), dtype)
            scores = (truth_BT, model_BT, _twin_scores(twin, given, dtype, several=several))
            compare = _Compare(name, "many" if several else "one", sample.request_B, tolerance or Tolerance())
            found.append(compare(*scores))
    return _judged(found, (tolerance or Tolerance()).low_ratio)


def _judged(found: Sequence[Comparison], low_ratio: float) -> list[Comparison]:
    """The verdict in 16 bits, over all samples of a type; a model that overflows gives nothing to hold to."""
    close = {}
    for dtype in {each.dtype for each in found} - {"float32", "float64"}:
        rows = [each for each in found if each.dtype == dtype and math.isfinite(each.model_rms)]
        twin, model, score = (
            math.sqrt(sum(getattr(each, name) ** 2 * each.rows for each in rows))
            for name in ("twin_rms", "model_rms", "score_rms")
        )
        # Within one unit in the last place both are as good as exact.
        unit = torch.finfo(getattr(torch, dtype)).eps * score
        close[dtype] = twin <= low_ratio * max(model, unit)
    return [replace(each, equal=each.equal and close.get(each.dtype, True)) for each in found]


def requests_apart(program: ExportedProgram, schema: RankerSchema, samples: Sequence[Sample]) -> bool:
    """Whether a request's scores beside other requests are those alone, so that a service may merge them.

    They are not where candidates look at each other, as in a softmax over all rows: one request by itself is
    what such a model means.

    Args:
        program: the exported model.
        schema: of the model.
        samples: of one request or of several.
    """
    for sample in samples:
        inputs = tiled(schema, sample)
        beside_BT = _scores(program, inputs, torch.float64)
        for request in sorted(set(sample.request_B.tolist())):
            rows = sample.request_B == request
            alone_BT = _scores(program, [x[rows] for x in inputs], torch.float64)
            if not torch.allclose(alone_BT, beside_BT[rows], rtol=_EXACT, atol=_EXACT, equal_nan=True):
                return False
    return True


def verify_onnx(
    program: ExportedProgram,
    folder: Path,
    schema: RankerSchema,
    samples: Sequence[Sample],
    tolerance: Tolerance | None = None,
) -> list[Comparison]:
    """The same in float32 for a twin's ONNX files, scored by onnxruntime; their type reads `onnx`.

    Args:
        program: the exported model.
        folder: holds one.onnx and many.onnx.
        schema: of both.
        samples: of one request or of several.
        tolerance: when scores count as equal.
    """
    sessions = {graph: onnx_session(folder / f"{graph}.onnx") for graph in ("one", "many")}
    found = []
    for sample in samples:
        graph = "many" if len(set(sample.request_B.tolist())) > 1 else "one"
        given = (sample.request_B, *sample.inputs) if graph == "many" else sample.inputs
        outputs = sessions[graph]([tensor.numpy() for tensor in given])
        truth, model = (_scores(program, tiled(schema, sample), t) for t in (torch.float64, torch.float32))
        compare = _Compare("float32", graph, sample.request_B, tolerance or Tolerance())
        compared = compare(truth, model, _joined([torch.from_numpy(each) for each in outputs]))
        found.append(replace(compared, dtype="onnx"))
    return found


@dataclass(frozen=True)
class _Compare:
    dtype: str
    graph: str
    request_B: Tensor
    tolerance: Tolerance

    def __call__(self, truth_BT: Tensor, model_BT: Tensor, twin_BT: Tensor) -> Comparison:
        alike = twin_BT.shape == model_BT.shape
        twin_BT = twin_BT if alike else torch.full_like(model_BT, math.inf)
        allowed, swapped, close = self.tolerance, 0, alike
        if self.dtype in ("float32", "float64"):
            swapped = swapped_pairs(truth_BT, twin_BT, self.request_B, allowed.gap)
            close &= all(
                torch.allclose(twin_BT, other, rtol=allowed.rtol, atol=allowed.atol)
                for other in (model_BT, truth_BT)
            )
        return Comparison(
            dtype=self.dtype,
            graph=self.graph,
            rows=len(self.request_B),
            error=_largest(twin_BT, model_BT),
            twin_error=_largest(twin_BT, truth_BT),
            model_error=_largest(model_BT, truth_BT),
            twin_rms=_rms(twin_BT, truth_BT),
            model_rms=_rms(model_BT, truth_BT),
            score_rms=_rms(truth_BT, torch.zeros_like(truth_BT)),
            swapped=swapped,
            equal=close and swapped == 0,
        )


def swapped_pairs(truth_BT: Tensor, other_BT: Tensor, request_B: Tensor, gap: float) -> int:
    """Rows that `other_BT` puts no higher than one that `truth_BT` has more than `gap` below them."""
    count = 0
    for request in set(request_B.tolist()):
        rows = request_B == request
        for truth_N, other_N in zip(truth_BT[rows].T, other_BT[rows].T, strict=True):
            count += _swapped(truth_N, other_N, gap)
    return count


def _swapped(truth_N: Tensor, other_N: Tensor, gap: float) -> int:
    order = truth_N.argsort()
    truth_N, other_N = truth_N[order], other_N[order]
    # Of the rows that lie more than the gap below row i, the largest score must be below that of row i.
    below_N = torch.searchsorted(truth_N, truth_N - gap)
    highest_N = other_N.cummax(0).values
    bad_N = (below_N > 0) & (highest_N[(below_N - 1).clamp_min(0)] >= other_N)
    return int(bad_N.sum())


def _scores(program: ExportedProgram, inputs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Run a program with its weights and inputs in a type; returns float64 `(B, T)`."""
    return _run(program.graph_module, [*weights_of(program).values(), *inputs], dtype)


def _twin_scores(twin: Twin, inputs: Sequence[Tensor], dtype: torch.dtype, *, several: bool) -> Tensor:
    """The same for what scores in a twin."""
    graph = twin.graph(several=several)
    return _run(graph.module, [*map(twin.get_buffer, graph.names), *inputs], dtype)


def _run(module: torch.fx.GraphModule, given: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode():
        cast = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in given)
        outputs = _InType(module, dtype).run(*cast)
    return _joined(pytree.tree_leaves(outputs))


def _joined(outputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x if x.ndim > 1 else x.reshape(-1, 1) for x in outputs], dim=1).double()


class _InType(torch.fx.Interpreter):
    """Runs a graph with the floating-point types that it names itself replaced by one."""

    def __init__(self, module: torch.fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module)
        self._dtype = dtype

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(self._typed, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def _typed(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


def _largest(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max()) if left.numel() else 0.0


def _rms(left: Tensor, right: Tensor) -> float:
    return float((left - right).square().mean().sqrt()) if left.numel() else 0.0
