"""summary_decode: the attention of one new token per sequence, and a cache's whole step.

`decode` is `cache_attention` alone, `step` what a layer does for a token: write, attend, move an ended chunk.

Shape letters: B sequences, H query heads, G key and value heads, D head width, n tokens of the longest
sequence, k chunk, W window, m summaries of a chunk, Q query rows, L rows of a slot.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.registry import DTYPES, Case, Operator, Plan, Provider, Work, our_providers, worst_error
from feedworks_kernels import CacheLayout, Places, Rows, SummaryCache, cache_attention, summary_attention
from feedworks_kernels.measuring import Call
from feedworks_kernels.testing import TOLERANCE, forced

_GPU = {"B": 16, "H": 32, "G": 8, "D": 128, "k": 8, "W": 128, "m": 1}
_CPU = {"B": 16, "H": 8, "G": 2, "D": 64, "k": 8, "W": 128, "m": 1}
# Sequences are shorter than the longest by this times their number.
_SHORTER = 37
_CHECKED = 2


class Inputs(NamedTuple):
    """A filled cache and one token for each sequence."""

    cache: SummaryCache
    places: Places
    text: Rows
    summary: Rows
    lengths: tuple[int, ...]
    length_B: Tensor


def _shapes(base: dict[str, int], *thousands: int) -> dict[str, dict[str, int]]:
    heads = f"H {base['H']}/{base['G']}, D {base['D']}"
    return {f"n {n}K, batch {base['B']}, {heads}": {**base, "n": n << 10} for n in thousands}


class SummaryDecode(Operator):
    """Batches of unequal lengths."""

    name = "summary_decode"
    plan = Plan(
        modes=("decode", "step"),
        shapes={"cpu": _shapes(_CPU, 32), "cuda": _shapes(_GPU, 32, 128)},
        quick={"n 300": {**_CPU, "B": 3, "W": 4, "n": 300}},
        check={"n 201": {**_CPU, "B": 4, "W": 3, "n": 201, "m": 2}},
        dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        """Fill a cache with random rows; what it says of its lengths decides what is read."""
        sizes, generator = case.sizes, torch.Generator(case.device).manual_seed(seed)
        layout = CacheLayout(sizes["k"], sizes["W"], sizes["n"] + 1, sizes["m"])
        batch = sizes["B"]
        cache = SummaryCache(layout, batch, sizes["G"], sizes["D"], dtype=case.kind, device=case.device)
        for part in (cache.key_NGLD, cache.value_NGLD):
            part.normal_(generator=generator)
        lengths = tuple(_lengths(sizes))
        length_B = torch.tensor(lengths, device=case.device)
        cache.length_N.copy_(length_B)

        def normal(heads: str, rows: int) -> Tensor:
            shape = (batch, sizes[heads], rows, sizes["D"])
            return torch.randn(shape, generator=generator, device=case.device).to(case.kind)

        text, summary = (
            Rows(normal("H", rows), normal("G", rows), normal("G", rows)) for rows in (1, sizes["m"])
        )
        return Inputs(cache, cache.places(summaries=False), text, summary, lengths, length_B)

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours; a product per sequence over its slice; a cache of all tokens."""
        if case.mode == "step":
            return our_providers(_step, case.device)
        return [
            *our_providers(_ours, case.device),
            Provider("sdpa_per_sequence", _per_sequence),
            Provider("sdpa_full_cache", _full_cache, computes="dense attention over all n tokens"),
        ]

    def work(self, case: Case) -> Work:
        """Each visible row of keys and values is read once."""
        sizes = case.sizes
        rows = sum(_visible_rows(sizes, length) for length in _lengths(sizes))
        heads, item = sizes["H"], case.kind.itemsize
        moved = item * sizes["D"] * (2 * sizes["G"] * rows + 2 * heads * sizes["B"])
        return Work(4.0 * rows * sizes["D"] * heads, float(moved))

    def error(self, case: Case, inputs: Inputs, result: Tensor) -> float:
        """Attend the first and last sequences in float64; a step's own token lies in the cache by then."""
        worst = 0.0
        batch = len(inputs.lengths)
        for number in {*range(_CHECKED), *range(batch - _CHECKED, batch)}:
            low, high = (int(part[number, 0]) for part in (inputs.places.start_BQ, inputs.places.stop_BQ))
            key, value = (
                part[number, :, low:high].double()
                for part in (inputs.cache.key_NGLD, inputs.cache.value_NGLD)
            )
            group = case.sizes["H"] // case.sizes["G"]
            key, value = (part.repeat_interleave(group, dim=0) for part in (key, value))
            query = inputs.text.query_BHTD[number].double()
            score = query @ key.transpose(1, 2) * case.sizes["D"] ** -0.5
            exact = torch.softmax(score, dim=-1) @ value
            worst = max(worst, worst_error([result[number]], [exact]))
        return worst

    def sweep(self, device: str) -> Iterable[Case]:
        """Four sequences of unequal lengths over two wraps of the ring."""
        for number, (chunk, window, summaries) in enumerate(product((1, 4, 8), (0, 1, 3, -1), (1, 2))):
            heads, width = ((4, 4), (8, 2), (8, 1))[number % 3], (64, 128)[number % 2]
            sizes = {"B": 4, "H": heads[0], "G": heads[1], "D": width, "k": chunk, "W": window}
            sizes |= {"m": summaries, "n": chunk * (2 * max(1, window) + 4) + chunk // 2}
            raw = "all" if window < 0 else window
            shape = f"k {chunk}, W {raw}, m {summaries}, H {heads[0]}/{heads[1]}, D {width}"
            for dtype in ("fp32", "bf16", "fp16"):
                yield Case(self.name, "step", shape, sizes, dtype, device)

    def random_case(self, draw: random.Random, device: str) -> Case:
        """Any type: the GPU's timed cases have one alone."""
        return super().random_case(draw, device)._replace(dtype=draw.choice(("fp32", "bf16", "fp16")))

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw four sequences over some wraps of a small ring."""
        heads, chunk = draw.choice(((4, 4), (8, 2), (8, 1))), draw.choice((1, 4, 8))
        window = draw.choice((-1, 0, 1, 2, 5))
        sizes = {"B": 4, "H": heads[0], "G": heads[1], "D": draw.choice((64, 128)), "k": chunk, "W": window}
        length = chunk * (2 * max(1, window) + 3) + draw.randint(0, 2 * chunk)
        return sizes | {"m": draw.choice((1, 2)), "n": length}

    def errors(self, case: Case) -> list[tuple[str, float, float]]:
        """Every step against the same row of a prefill by the definition in float64."""
        text, summary = _prefill_error(case)
        allowed = TOLERANCE[case.kind]
        return [("step, text", text, allowed), ("step, summaries", summary, allowed)]


def _lengths(sizes: Any) -> list[int]:
    """Lengths whose next token ends no chunk."""
    found = [max(0, sizes["n"] - _SHORTER * number) for number in range(sizes["B"])]
    return [length - (length % sizes["k"] == sizes["k"] - 1) for length in found]


def _visible_rows(sizes: Any, length: int) -> int:
    chunk = length // sizes["k"]
    raw = length % sizes["k"] + 1 + sizes["k"] * min(chunk, sizes["W"])
    return int(raw + sizes["m"] * max(0, chunk - sizes["W"]))


def _ours(inputs: Inputs) -> Call:
    cache, places, query = inputs.cache, inputs.places, inputs.text.query_BHTD
    return lambda: cache_attention(
        query, cache.key_NGLD, cache.value_NGLD, places.start_BQ, places.stop_BQ, slot_B=places.slot_B
    )


def _step(inputs: Inputs) -> Call:
    cache = inputs.cache

    def run() -> Tensor:
        cache.length_N.copy_(inputs.length_B)  # or the sequences would grow from call to call
        return cache.step(inputs.text, inputs.summary).text_BHQD

    return run


def _per_sequence(inputs: Inputs) -> Call:
    """As the public ring cache does: one product a sequence, over its slice."""
    slices = [
        (inputs.text.query_BHTD[number : number + 1], key, value)
        for number, (key, value) in enumerate(_slices(inputs))
    ]
    return lambda: torch.cat(
        [F.scaled_dot_product_attention(*each, enable_gqa=True) for each in slices], dim=0
    )


def _slices(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    bounds = zip(inputs.places.start_BQ[:, 0].tolist(), inputs.places.stop_BQ[:, 0].tolist(), strict=True)
    return [
        (inputs.cache.key_NGLD[b : b + 1, :, low:high], inputs.cache.value_NGLD[b : b + 1, :, low:high])
        for b, (low, high) in enumerate(bounds)
    ]


def _full_cache(inputs: Inputs) -> Call:
    """Every token kept; all sequences as long as the longest, which leaves the peer without a mask."""
    batch, heads, _, width = inputs.cache.key_NGLD.shape
    key, value = (
        inputs.cache.key_NGLD.new_empty(batch, heads, max(inputs.lengths), width).normal_() for _ in range(2)
    )
    query = inputs.text.query_BHTD
    return lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def _prefill_error(case: Case) -> tuple[float, float]:
    """Prefill part of four sequences, step through the rest; the worst of text and of summary rows."""
    sizes, generator = case.sizes, torch.Generator().manual_seed(5)
    chunk, summaries, length = sizes["k"], sizes["m"], sizes["n"]
    window = None if sizes["W"] < 0 else sizes["W"]

    def rows(number: int) -> Rows:
        shapes = [(sizes["B"], sizes[letter], number, sizes["D"]) for letter in "HGG"]
        return Rows(*(torch.randn(shape, generator=generator).to(DTYPES[case.dtype]) for shape in shapes))

    text, summary = rows(length), rows(summaries * -(-length // chunk))
    with forced("reference"):
        exact = summary_attention(
            Rows(*(part.double() for part in text)),
            Rows(*(part.double() for part in summary)),
            chunk=chunk,
            window=window,
            summaries=summaries,
        )
    text, summary = (Rows(*(part.to(case.device) for part in each)) for each in (text, summary))
    layout = CacheLayout(chunk, window, length, summaries)
    cache = SummaryCache(layout, 4, sizes["G"], sizes["D"], dtype=case.kind, device=case.device)
    starts = [0, 1, chunk + chunk // 2, 2 * chunk]
    prompts, far = (Rows(*(part[1:] for part in each)) for each in (text, summary))
    cache.prefill(range(1, 4), prompts, far, starts[1:])
    got, right, got_far, right_far = [], [], [], []
    for moment in range(length - max(starts)):
        place = [start + moment for start in starts]
        first = [index // chunk * summaries for index in place]
        one = Rows(*(_picked(part, place, 1) for part in text))
        few = Rows(*(_picked(part, first, summaries) for part in summary))
        out = cache.step(one, few)
        got.append(out.text_BHQD.cpu())
        right.append(_picked(exact.text_BHTD, place, 1))
        ends = [number for number, index in enumerate(place) if index % chunk == chunk - 1]
        if ends and out.summary_BHmD is not None:
            got_far.append(out.summary_BHmD.cpu()[ends])
            right_far.append(_picked(exact.summary_BHSD, first, summaries)[ends])
    of_summaries = worst_error([torch.cat(got_far)], [torch.cat(right_far)]) if got_far else 0.0
    return worst_error([torch.cat(got)], [torch.cat(right)]), of_summaries


def _picked(rows_BHTD: Tensor, starts: Sequence[int], number: int) -> Tensor:
    """Take `number` rows of each sequence from its own start on."""
    return torch.stack([rows_BHTD[b, :, start : start + number] for b, start in enumerate(starts)])


OPERATOR = SummaryDecode()
