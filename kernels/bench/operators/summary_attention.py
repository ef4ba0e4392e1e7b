"""summary_attention, forward and backward, against dense attention and FlexAttention in three layouts.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width; k
chunk, W window, m summaries of a chunk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from bench import attention_peers as peers
from bench.attention_exact import exact_sample, kept
from bench.attention_peers import Inputs, Prepared
from bench.registry import Case, Operator, Plan, Provider, Work, difference, our_providers, worst_error
from feedworks_kernels import summary_attention
from feedworks_kernels.measuring import Call
from feedworks_kernels.summary_attention import Rows, exactness, first_chunks
from feedworks_kernels.summary_attention.pattern import Pattern
from feedworks_kernels.testing import TOLERANCE

_BACKWARD_OVER_FORWARD = 2.5  # five products against two
# Key of a case that is one of the operator's sweep.
_NUMBER = "number in the sweep"
_CPU = {"B": 1, "H": 4, "G": 4, "D": 64, "k": 8, "W": 128, "m": 1}
_GPU = {"B": 1, "H": 32, "G": 8, "D": 128, "k": 8, "W": 128, "m": 1}
_SMALL = {"B": 2, "H": 4, "G": 2, "D": 64, "k": 8, "m": 1}


def _lengths(base: dict[str, int], *thousands: int) -> dict[str, dict[str, int]]:
    return {f"n {n}K, H {base['H']}/{base['G']}, D {base['D']}": {**base, "T": n << 10} for n in thousands}


class SummaryAttention(Operator):
    """k 8, W 128, m 1 as released; the sweep has the rest."""

    name = "summary_attention"
    plan = Plan(
        modes=("forward", "backward"),
        shapes={"cpu": _lengths(_CPU, 4, 8, 16), "cuda": _lengths(_GPU, 8, 32, 128)},
        quick={"n 128": {**_SMALL, "B": 1, "H": 2, "W": 4, "T": 128}},
        check={"n 200": {**_SMALL, "W": 3, "T": 200}, "n 301": {**_SMALL, "W": 5, "T": 301}},
        dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    )

    def wanted(self, mode: str, shape: str, device: str) -> bool:
        """Gradients of 16 Ki rows take a CPU some seconds a call."""
        return device == "cuda" or mode == "forward" or not shape.startswith("n 16K")

    def inputs(self, case: Case, seed: int) -> Inputs:
        """Draw standard normal rows."""
        return draw(case, seed)

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours, dense, FlexAttention, the official kernel."""
        on_gpu, is_long = case.device == "cuda", case.sizes["T"] > 1 << 13
        prepare = _Prepare(case.mode)
        # The form in PyTorch operators takes seconds at long lengths on a GPU.
        ours = our_providers(prepare(_ours), case.device)[: 1 if is_long else None]
        return [*ours, *_dense(prepare, on_gpu), *_flex(case, prepare), _official(case, prepare)]

    def work(self, case: Case) -> Work:
        """Four operations a pair and number, pairs that are read; the backward five products for two."""
        sizes, rows = case.sizes, case.sizes["T"] + num_summaries(case.sizes)
        per_row = (2 if case.mode == "forward" else 4) * (sizes["H"] + sizes["G"])
        flops = 4.0 * num_pairs(sizes) * sizes["D"] * sizes["H"] * sizes["B"]
        if case.mode == "backward":
            flops *= _BACKWARD_OVER_FORWARD
        return Work(flops, float(case.kind.itemsize * sizes["B"] * rows * sizes["D"] * per_row))

    def error(self, case: Case, inputs: Inputs, result: Any) -> float:
        """Compare all of a small result, some rows and the last chunk's keys of a large one."""
        return worst_error(kept(result, inputs), exact_sample(inputs, gradients=case.mode == "backward"))

    def sweep(self, device: str) -> Iterable[Case]:
        """The operator's own sweep, in each type."""
        for number, case in enumerate(exactness.sweep()):
            shape = f"n {case.num_text}, k {case.chunk}, W {case.window}, m {case.summaries}, "
            shape += f"H {case.heads[0]}/{case.heads[1]}, D {case.width}"
            shape += ", two documents" * case.documents + ", unfinished chunk without" * (not case.unfinished)
            for dtype in ("fp32", "bf16", "fp16"):
                yield Case(self.name, "all", shape, {_NUMBER: number}, dtype, device)

    def random_case(self, draw: random.Random, device: str) -> Case:
        """Any type: the GPU's timed cases have one alone."""
        return super().random_case(draw, device)._replace(dtype=draw.choice(("fp32", "bf16", "fp16")))

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw everything; few different widths and chunks, since each is another program."""
        heads, chunk = draw.choice(((4, 4), (8, 2), (8, 1))), draw.choice((1, 4, 8, 16, 32))
        sizes = {"B": draw.randint(1, 3), "H": heads[0], "G": heads[1], "T": draw.randint(1, 700)}
        sizes |= {"D": draw.choice((64, 128)), "k": chunk, "W": draw.choice((0, 1, 3, 17, 128))}
        return sizes | {"m": draw.choice((1, 2)), "packed": draw.randint(0, 1)}

    def errors(self, case: Case) -> list[tuple[str, float, float]]:
        """Forward and all six gradients of one case, of the operator's sweep or a random one."""
        if _NUMBER in case.sizes:
            found = exactness.exactness(exactness.sweep()[case.sizes[_NUMBER]], case.kind, case.device)
            return [(name.replace("_", " "), error, TOLERANCE[case.kind]) for name, error in found.items()]
        inputs, allowed = draw(case, 7), TOLERANCE[case.kind]
        rows: list[tuple[str, float, float]] = []
        for mode in ("forward", "backward"):
            exact = exact_sample(inputs, gradients=mode == "backward")
            call = _Prepare(mode)(_ours)(inputs)
            got, again = (cast("tuple[Tensor, ...]", call()) for _ in range(2))
            moved = 0.0 if mode == "forward" else 0.1 * allowed  # gradients may be summed in any order
            rows.append((f"{mode}, repeated", difference(got, again), moved))
            names = exactness.TENSORS[slice(0, 2) if mode == "forward" else slice(2, None)]
            rows += [
                (name.replace("_", " "), worst_error([left], [right]), allowed)
                for name, left, right in zip(names, kept(got, inputs), exact, strict=True)
            ]
        return rows


def _dense(prepare: _Prepare, on_gpu: bool) -> list[Provider]:
    words = "dense causal attention over the text alone"
    if not on_gpu:
        return [Provider("sdpa", prepare(peers.dense), computes=words)]
    backends = {"sdpa_cudnn": "CUDNN_ATTENTION", "sdpa_flash": "FLASH_ATTENTION"}
    return [
        Provider(name, prepare(partial(peers.dense, backend=backend)), computes=words)
        for name, backend in backends.items()
    ]


def _flex(case: Case, prepare: _Prepare) -> list[Provider]:
    # Uncompiled FlexAttention is exact and slow, but a small case takes less time than to compile it.
    compiled = case.sizes["T"] > 1024
    absent = _ragged(case)
    if case.device == "cpu" and case.mode == "backward":
        absent = "FlexAttention has no gradient on a CPU"
    # Half the time of a round goes into what need not be asked again.
    endless = "to 32 Ki rows alone" if case.mode == "backward" and case.sizes["T"] > 1 << 15 else ""
    # A compilation takes a CPU ten seconds.
    is_short = case.device == "cpu" and compiled and case.sizes["T"] < 1 << 14
    rare = "on a CPU only at 16 Ki rows" if is_short else ""
    separate, joint, near = (
        prepare(partial(build, compiled=compiled))
        for build in (peers.flex_separate, peers.flex_interleaved, peers.flex_window)
    )
    return [
        Provider("flex_separate", separate, absent, read=_read_separate),
        Provider("flex_interleaved", joint, absent or endless, read=_read_interleaved),
        Provider("flex_window", near, absent or rare, computes="the raw window alone, no summaries"),
    ]


def _official(case: Case, prepare: _Prepare) -> Provider:
    absent = peers.missing("summary_attn") if case.device == "cuda" else "needs CUDA"
    return Provider("official_ksa", prepare(peers.official), absent or _ragged(case), read=_read_official)


def _ragged(case: Case) -> str:
    return "an unfinished chunk does not fit it" if case.sizes["T"] % case.sizes["k"] else ""


def num_summaries(sizes: Any) -> int:
    """Return S: every chunk has summaries, an unfinished last one too."""
    return int(sizes["m"] * -(-sizes["T"] // sizes["k"]))


def num_pairs(sizes: Any) -> float:
    """Count the pairs that no mask hides, text and summary rows together."""
    length, chunk, window, summaries = (sizes[letter] for letter in "TkWm")
    row_T = torch.arange(length)
    chunk_T = row_T // chunk
    text = row_T % chunk + 1 + chunk * chunk_T.clamp_max(window) + summaries * (chunk_T - window).clamp_min(0)
    own: int = length * summaries + -(-length // chunk) * summaries * (summaries + 1) // 2
    return float(text.sum()) + own


def draw(case: Case, seed: int) -> Inputs:
    """Draw rows and gradients on the device."""
    sizes, generator = case.sizes, torch.Generator(case.device).manual_seed(seed)

    def normal(heads: str, rows: int) -> Tensor:
        shape = (sizes["B"], sizes[heads], rows, sizes["D"])
        return torch.randn(shape, generator=generator, device=case.device, dtype=torch.float32).to(case.kind)

    lengths = sizes["T"], num_summaries(sizes)
    text, summary = (Rows(normal("H", rows), normal("G", rows), normal("G", rows)) for rows in lengths)
    packed = None
    if sizes.get("packed"):
        document_BT = torch.arange(sizes["T"], device=case.device) // (3 * sizes["k"])
        packed = first_chunks(document_BT.expand(sizes["B"], -1), sizes["k"])
    pattern = Pattern(sizes["k"], sizes["W"], sizes["m"], sizes["D"] ** -0.5, packed)
    return Inputs(text, summary, normal("H", lengths[0]), normal("H", lengths[1]), pattern)


class _Prepare:
    """Turns what a peer prepares into a call: the attention itself, or its gradients from a kept forward."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def __call__(self, build: Callable[[Inputs], Prepared]) -> Callable[[Inputs], Call]:
        def bind(inputs: Inputs) -> Call:
            leaves, run, grads = build(inputs)
            if self._mode == "forward":
                return lambda: _without_gradient(run, leaves)
            leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
            out = run(*leaves)
            outs = out if isinstance(out, tuple) else (out,)
            return lambda: torch.autograd.grad(outs, leaves, grads, retain_graph=True)

        return bind


def _without_gradient(run: Callable[..., Any], leaves: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return run(*leaves)


def _ours(inputs: Inputs) -> Prepared:
    chunk, window, summaries, scale, first = inputs.pattern
    options: dict[str, Any] = {"chunk": chunk, "window": window, "summaries": summaries}
    options |= {"scale": scale, "first_chunk_BC": first}

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(summary_attention(Rows(*leaves[:3]), Rows(*leaves[3:]), **options))  # type: ignore[return-value]

    grads = (inputs.grad_text_BHTD, inputs.grad_summary_BHSD)
    return Prepared((*inputs.text, *inputs.summary), run, grads)


def _read_separate(inputs: Inputs, result: Any) -> Any:
    if len(result) == 2:
        return result
    query, query_summary, *both = result
    place = inputs.summary.key_BGTD.shape[2]
    near, far = ([part[:, :, place:] for part in both], [part[:, :, :place] for part in both])
    return (query, *near, query_summary, *far)


def _read_interleaved(inputs: Inputs, result: Any) -> Any:
    place_N = torch.argsort(peers.interleaved_order(inputs))
    place = inputs.text.key_BGTD.shape[2]
    parts = [part[:, :, place_N] for part in (result if isinstance(result, tuple) else (result,))]
    return (*(part[:, :, :place] for part in parts), *(part[:, :, place:] for part in parts))


def _read_official(inputs: Inputs, result: Any) -> Any:
    parts = result if isinstance(result, tuple) else (result,)
    return _read_interleaved(inputs, tuple(part.transpose(1, 2) for part in parts))


OPERATOR = SummaryAttention()
