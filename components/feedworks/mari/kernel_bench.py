"""MaRI (arXiv 2602.23105): the bench of one kernel, `python -m feedworks.mari.kernel_bench`, on CPU or GPU.

`feedworks_kernels.user_item_linear` against the ways to get the same numbers from a library. On a GPU every
provider is a CUDA graph of many calls that go round three sets of buffers, since a launch from Python takes
longer than the work; the ceilings it is held to are measured in the same process.

Shape letters: B candidates, R requests, U columns of the user, I columns of candidates, N outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import torch

from feedworks.mari.kernel_bench_gpu import ceilings, floor_s, ikbo_providers, replayed
from feedworks.metrics.latency import Timing, device_label, interleave, json_rows, print_rows
from feedworks_kernels.user_item_linear.peers import OURS, Layer, Provider, draw, exact, providers

SHAPES = ("2000,4000,400,256", "1000,512,128,256", "500,1024,64,512", "4000,1000,104,128")
# 1,024 candidates of 15 users, 433 outputs of 866 and 1,178 numbers for each of 256 columns, widths padded to
# 8: the shape of IKBO's own bench, as rows.
IKBO_SHAPE = (1024, 15, 1184, 872, 433)
IKBO_COLUMNS = 256
_BUFFERS = 3
# On a CPU a turn is this many calls: most find the caches and the heap as the same provider left them.
_CALLS = 5
# Times the error of the concatenation's own product: another order of summation errs by another amount.
_MOST_ERROR = 8
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Rows of a result that are compared with float64.
_CHECKED_ROWS = 256
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True)
@click.option("--shape", "shapes", multiple=True, default=SHAPES, show_default=True, help="B,U,I,N")
@click.option("--requests", multiple=True, type=int, default=(1, 16), show_default=True, help="R")
@click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), default=None, help="[default: bf16, fp32 on a CPU]"
)
@click.option("--ikbo", type=click.Path(exists=True), help="a copy of FBGEMM's fbgemm_gpu/experimental/ikbo")
@click.option("--repeats", type=int, default=60, show_default=True)
@click.option("--threads", type=int, default=None, help="threads of torch  [default: its choice]")
@click.option(
    "--clock", type=click.Choice(list(_CLOCKS)), default="wall", help="cpu: busy machine, one thread"
)
def main(
    device: str,
    shapes: Sequence[str],
    requests: Sequence[int],
    dtype: str | None,
    ikbo: str | None,
    repeats: int,
    threads: int | None,
    clock: str,
) -> None:
    """Time one layer over users and candidates; one JSON object per line, then a table.

    `speedup` is over each provider. On a CPU `realised` is the speed-up over tiling and concatenation divided
    by the ratio of operations; on a GPU `of_floor` is the least time for the bytes or operations plus one
    launch, divided by the time it took.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch sees no CUDA device here; take --device cpu")
    if ikbo is not None and device != "cuda":
        raise click.UsageError("--ikbo needs --device cuda")
    torch.set_num_threads(threads or torch.get_num_threads())
    kind = _DTYPES[dtype or ("bf16" if device == "cuda" else "fp32")]
    limits = ceilings() if device == "cuda" else {}
    run = Run(device=device, dtype=kind, limits=limits, repeats=repeats, clock=clock)
    rows: list[dict[str, Any]] = []
    if limits:
        rows.append({"op": "ceilings", "device": device_label(device), **limits})
        print_rows(rows)
    with torch.inference_mode():
        for shape in shapes:
            num_rows, *widths = (int(size) for size in shape.split(","))
            for num_requests in requests:
                rows += layer_rows((num_rows, num_requests, *widths), run)
        if ikbo is not None:
            rows += ikbo_rows(ikbo, replace(run, dtype=torch.float16))
    click.echo(table(rows))


@dataclass(frozen=True, kw_only=True)
class Run:
    """How to measure: `limits` is what `ceilings` found, empty on a CPU; `clock` a name of `_CLOCKS`."""

    device: str
    dtype: torch.dtype
    limits: Mapping[str, float]
    repeats: int
    clock: str = "wall"


def layer_rows(sizes: Sequence[int], run: Run) -> list[dict[str, Any]]:
    """Compare the results of all providers with float64, time them, print a row for each.

    Args:
        sizes: B, R, U, I, N.
        run: how to measure.

    Raises:
        click.ClickException: a provider errs by more than another order of summation explains.
    """
    layers = [draw(sizes, run.device, run.dtype, seed) for seed in range(_BUFFERS if run.limits else 1)]
    ways = [providers(layer, compiled=run.device == "cuda") for layer in layers]
    return _timed_rows(ways, sizes, run, _compare(ways[0], layers[0]))


def ikbo_rows(path: str, run: Run) -> list[dict[str, Any]]:
    """Time ours and IKBO's Triton kernel on IKBO's shape: the same products and bytes, each in its layout."""
    candidates, users, user, item, outputs = IKBO_SHAPE
    sizes = (candidates * IKBO_COLUMNS, users * IKBO_COLUMNS, user, item, outputs)
    row_B = torch.arange(sizes[0], device="cuda")
    request_B = row_B // IKBO_COLUMNS * users // candidates * IKBO_COLUMNS + row_B % IKBO_COLUMNS
    ways = []
    for seed in range(_BUFFERS):
        layer = replace(draw(sizes, run.device, run.dtype, seed), request_B=request_B)
        ours = providers(layer, compiled=False)
        ways.append(
            {OURS: ours[OURS], "two_products": ours["two_products"]}
            | ikbo_providers(path, IKBO_SHAPE, IKBO_COLUMNS, layer.weight_user_NU, layer.weight_item_NI)
        )
    return _timed_rows(ways, sizes, run, error=None)


def _timed_rows(
    ways: Sequence[Mapping[str, Provider]], sizes: Sequence[int], run: Run, error: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    timings: Mapping[str, Timing]
    if run.limits:
        timings, device = replayed(ways, run.repeats), device_label("cuda")
    else:
        several = {name: _several(way) for name, way in ways[0].items()}
        timings = {
            name: Timing(*(seconds / _CALLS for seconds in timing))
            for name, timing in interleave(several, repeats=run.repeats, clock=_CLOCKS[run.clock]).items()
        }
        device = f"{device_label()}, {torch.get_num_threads()} threads"
    shape = dict(zip("BRUIN", sizes, strict=True))
    rows = json_rows("user_item_linear", shape, device, timings, ours=OURS, error=error)
    num_rows, num_requests, user, item, _ = sizes
    flop_ratio = num_rows * (user + item) / (num_rows * item + num_requests * user)
    for row in rows:
        row |= {"dtype": str(run.dtype).removeprefix("torch."), "flop_ratio": round(flop_ratio, 3)}
        if run.limits:
            row["of_floor"] = round(floor_s(shape, run.dtype.itemsize, run.limits) / row["p50_s"], 3)
        else:
            row["clock"] = run.clock
        if row["provider"] == OURS and not run.limits:
            tiled = {name: times for name, times in row["speedup"].items() if "concat" in name}
            row["realised"] = {name: round(times / flop_ratio, 3) for name, times in tiled.items()}
    print_rows(rows)
    return rows


def _several(way: Provider) -> Callable[[], object]:
    def run() -> None:
        for _ in range(_CALLS):
            way()

    return run


def _compare(ways: Mapping[str, Provider], layer: Layer) -> dict[str, float]:
    """Largest error of each provider over the first rows, against float64.

    Raises:
        click.ClickException: one errs by more than another order of summation explains.
    """
    right = exact(layer, _CHECKED_ROWS)
    error = {name: float((run()[:_CHECKED_ROWS].double() - right).abs().max()) for name, run in ways.items()}
    most = _MOST_ERROR * max(error["tile_concat_product"], torch.finfo(layer.item_BI.dtype).eps)
    for name, size in error.items():
        if not size <= most:
            raise click.ClickException(f"{name} errs by {size:.2g}, concatenation allows {most:.2g}")
    return error


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the timed rows for people: shape, provider, microseconds, how often ours fits into it."""
    lines = [f"{'B,R,U,I,N':>26} {'provider':>22} {'p50 us':>10} {'ours x':>8} {'of floor':>8}"]
    ours = {str(row["shape"]): row["p50_s"] for row in rows if row.get("provider") == OURS}
    for row in rows:
        if "provider" in row:
            sizes = ",".join(str(size) for size in row["shape"].values())
            times = row["p50_s"] / ours[str(row["shape"])]
            floor = row.get("of_floor", "")
            lines.append(
                f"{sizes:>26} {row['provider']:>22} {row['p50_s'] * 1e6:10.1f} {times:8.2f} {floor:>8}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
