"""RecoChain (arXiv 2604.25787): the benches, `feedworks.recochain.bench decode | quantise | prepare | serve`.

Every command prints one JSON object per line, providers interleaved in one process, and compares the
providers' results before it times them. Inputs are drawn once and given to all: no model's time is included.

Shape letters: N items or vectors, L levels, C codes, K live beams, W beams kept, D width of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from feedworks.metrics.latency import device_label, interleave, json_rows, print_rows
from feedworks.recochain.prepare_bench import prepare
from feedworks.recochain.serve_bench import serve
from feedworks.recochain.trie import Trie
from feedworks_kernels import residual_quantize
from feedworks_kernels.beam_step.searches import Decoded, HfPrefix, Model, Static, by_steps
from feedworks_kernels.residual_quantize.peers import peers

OURS = "feedworks"
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Share of vectors whose codes may differ between providers: near ties fall either way in fp32.
_MAX_DIFFERENT = 1e-3

_threads = click.option("--threads", type=int, default=None, help="threads of torch  [default: its choice]")
_repeats = click.option("--repeats", type=int, default=41, show_default=True)
_clock = click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="cpu: busy machine"
)
_seed = click.option("--seed", type=int, default=0, show_default=True)


@click.group()
def main() -> None:
    """Measure RecoChain's hot paths against their peers; one JSON object per line."""


main.add_command(prepare)
main.add_command(serve)


@main.command()
@click.option("--codes", type=int, multiple=True, default=(256, 2048, 8192), help="C; may be repeated")
@click.option("--items", type=int, default=1_000_000, show_default=True)
@click.option("--levels", type=int, default=3, show_default=True)
@click.option("--beams", type=int, default=256, show_default=True)
@_repeats
@_threads
@_clock
@_seed
def decode(
    codes: Sequence[int],
    items: int,
    levels: int,
    beams: int,
    repeats: int,
    threads: int | None,
    clock: str,
    seed: int,
) -> None:
    """Whole constrained beam search, against a prefix function and against STATIC."""
    if threads is not None:
        torch.set_num_threads(threads)
    for num_codes in codes:
        sids_NL = np.random.default_rng(seed).integers(0, num_codes, (items, levels))
        print_rows(decode_rows(sids_NL, num_codes, beams, seed, repeats, clock))


@main.command()
@click.option("--widths", type=int, multiple=True, default=(64, 512), help="D; may be repeated")
@click.option("--codes", type=int, multiple=True, default=(256, 8192), help="C; may be repeated")
@click.option("--levels", type=int, default=3, show_default=True)
@click.option("--gflop", type=float, default=16.0, show_default=True, help="work of one call; gives N")
@_repeats
@_threads
@_clock
@_seed
def quantise(
    widths: Sequence[int],
    codes: Sequence[int],
    levels: int,
    gflop: float,
    repeats: int,
    threads: int | None,
    clock: str,
    seed: int,
) -> None:
    """Codes of vectors by residual quantisation, against faiss and against plain products in blocks."""
    if threads is not None:
        torch.set_num_threads(threads)
    for width in widths:
        for num_codes in codes:
            num_rows = max(256, int(gflop * 1e9 / (2 * width * num_codes * levels)))
            generator = torch.Generator().manual_seed(seed)
            x_ND = torch.randn(num_rows, width, generator=generator)
            codebooks_LCD = torch.randn(levels, num_codes, width, generator=generator)
            codebooks_LCD *= 0.7 ** torch.arange(1, levels + 1).view(-1, 1, 1)
            print_rows(quantise_rows(x_ND, codebooks_LCD, repeats, clock))


def decode_rows(
    sids_NL: np.ndarray, num_codes: int, width: int, seed: int, repeats: int, clock: str
) -> list[dict[str, Any]]:
    """Build the three indexes, compare the results, time the searches.

    Beside the fields of `json_rows`: `invalid` (SIDs that no item has), `index_bytes`, `build_s`.

    Raises:
        click.ClickException: a provider's beams differ from ours or hold an SID that no item has.
    """
    start_s = time.perf_counter()
    trie = Trie.build(sids_NL, num_codes)
    build_s = time.perf_counter() - start_s
    hf_prefix, static = HfPrefix(trie.levels), Static(trie.levels, num_codes)
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(width, num_codes, generator=generator) for _ in range(trie.num_levels)]
    providers: dict[str, Callable[[Model], Decoded]] = {
        OURS: lambda model: search(trie, model, width),
        "static": lambda model: static.decode(model, width),
        "hf_prefix": lambda model: hf_prefix.decode(model, width),
    }
    prefix_model = _model_of_prefix(logits)
    invalid = compare_beams({name: run(prefix_model) for name, run in providers.items()}, trie)
    timings = interleave(
        {
            name: _bound(run, lambda step, sid_KL: logits[step][: len(sid_KL)])
            for name, run in providers.items()
        },
        repeats=repeats,
        clock=_CLOCKS[clock],
    )
    shape = {"beams": width, "levels": trie.num_levels, "codes": num_codes, "items": len(sids_NL)}
    rows = json_rows("constrained_decode", shape, _device(), timings, ours=OURS)
    index_bytes = {OURS: trie.memory_bytes(), "static": static.index_bytes()}
    for row in rows:
        row["clock"] = clock
        row["invalid"] = invalid[row["provider"]]
        if row["provider"] in index_bytes:
            row["index_bytes"] = index_bytes[row["provider"]]
        if row["provider"] == OURS:
            row["build_s"] = round(build_s, 3)
    return rows


def search(trie: Trie, model: Model, width: int) -> Decoded:
    """Search with `width` beams by `feedworks_kernels.beam_step`."""
    return by_steps(trie.levels, model, width)


def compare_beams(results: Mapping[str, Decoded], trie: Trie) -> dict[str, int]:
    """Return each provider's number of SIDs that no item has: 0 for all.

    Beams of score -inf, which fill up where fewer SIDs than beams exist, are left out.

    Raises:
        click.ClickException: an SID does not exist, or a provider's set or scores are not ours.
    """
    live = {name: found.score_W > -torch.inf for name, found in results.items()}
    sids = {name: found.sid_WL[live[name]] for name, found in results.items()}
    scores = {name: found.score_W[live[name]] for name, found in results.items()}
    expected = set(map(tuple, sids[OURS].tolist()))
    for name in results:
        num_invalid = int((trie.find(sids[name]) < 0).sum())
        if num_invalid:
            raise click.ClickException(f"{name}: {num_invalid} of {len(sids[name])} SIDs do not exist")
        if set(map(tuple, sids[name].tolist())) != expected:
            raise click.ClickException(f"{name}: other SIDs than {OURS}; the timings would compare nothing")
        if not torch.allclose(scores[name], scores[OURS], rtol=0, atol=1e-4):
            raise click.ClickException(f"{name}: other scores than {OURS}; the timings would compare nothing")
    return dict.fromkeys(results, 0)


def quantise_rows(x_ND: Tensor, codebooks_LCD: Tensor, repeats: int, clock: str) -> list[dict[str, Any]]:
    """Compare the codes of all providers, then time them; `error` is the share of vectors coded differently.

    Raises:
        click.ClickException: a provider's codes differ from ours beyond near ties.
    """
    providers = _quantisers(x_ND, codebooks_LCD)
    error = compare_codes({name: run() for name, run in providers.items()})
    levels, num_codes, width = codebooks_LCD.shape
    shape = {"rows": len(x_ND), "width": width, "levels": levels, "codes": num_codes}
    timings = interleave(providers, repeats=repeats, clock=_CLOCKS[clock])
    rows = json_rows("residual_quantize", shape, _device(), timings, ours=OURS, error=error)
    return [row | {"clock": clock} for row in rows]


def compare_codes(codes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return for each provider the share of vectors whose codes (N, L) are not ours.

    Raises:
        click.ClickException: a share is more than near ties explain.
    """
    error = {name: float((found != codes[OURS]).any(axis=1).mean()) for name, found in codes.items()}
    for name, share in error.items():
        if share > _MAX_DIFFERENT:
            raise click.ClickException(f"{name}: {share:.2%} of the vectors get other codes than {OURS}")
    return error


def _quantisers(x_ND: Tensor, codebooks_LCD: Tensor) -> dict[str, Callable[[], np.ndarray]]:
    """Our quantiser and its peers, each from the vectors to the codes (N, L)."""

    def as_array(run: Callable[[], Tensor]) -> Callable[[], np.ndarray]:
        return lambda: run().numpy()

    ours = {OURS: as_array(lambda: residual_quantize(x_ND, codebooks_LCD).codes_NL)}
    return ours | {name: as_array(run) for name, run in peers(x_ND, codebooks_LCD).items()}


def _model_of_prefix(logits: Sequence[Tensor]) -> Model:
    """Logits that belong to the codes so far, so that beams of equal score may stand in any order."""

    def model(step: int, sid_KL: Tensor) -> Tensor:
        row_K = (sid_KL * torch.tensor([7919, 104729, 1299709, 15485863])[:step]).sum(dim=1)
        return logits[step][row_K % len(logits[step])]

    return model


def _bound(run: Callable[[Model], Decoded], model: Model) -> Callable[[], Decoded]:
    return lambda: run(model)


def _device() -> str:
    return f"{device_label()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
