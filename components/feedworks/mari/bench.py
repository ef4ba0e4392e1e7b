"""MaRI (arXiv 2602.23105): the benches, `python -m feedworks.mari.bench layer | models | serve`.

Every command prints one JSON object per line, and compares the providers' scores before it times them. In
`layer` and `models` they are interleaved in one process, and all score one request: user inputs of one row,
candidates of B.

Shape letters: B candidates, Du columns of the user, Dr columns of candidates, N outputs of the first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from feedworks.mari import flops
from feedworks.mari.paradigms import (
    FRAGMENTED,
    MARI,
    PLAIN,
    UOI,
    UOI_KERNELS,
    VANI,
    Scorer,
    scorers,
    twins,
)
from feedworks.mari.samples import export_ranker, one_request
from feedworks.mari.schema import ModelInput, RankerSchema, Side
from feedworks.mari.serve_bench import serve
from feedworks.metrics.latency import Timing, device_label, interleave, json_rows, print_rows
from feedworks.nn import rankers

SHAPES = ("2000,4000,400,256", "1000,512,128,256", "2000,4000,500,512", "4096,1024,64,256")
ROWS = (1, 100, 500, 2000, 10_000)
# Scores are of size 1; sums of some thousand float32 numbers in another order differ by this at most.
_MOST_ERROR = 1e-4

_threads = click.option("--threads", type=int, default=None, help="threads of torch  [default: its choice]")
_repeats = click.option("--repeats", type=int, default=41, show_default=True)
_seed = click.option("--seed", type=int, default=0, show_default=True)
_compiled = click.option("--compiled", is_flag=True, help="also under torch.compile; some 20 s for each")


@click.group()
def main() -> None:
    """Measure the twin against the ways that serving stacks run a ranker; one JSON object per line."""


@main.command()
@click.option("--shape", "shapes", multiple=True, default=SHAPES, show_default=True, help="B,Du,Dr,N")
@click.option("--blocks", type=int, default=8, show_default=True, help="alternating blocks, when fragmented")
@_compiled
@_repeats
@_threads
@_seed
def layer(
    shapes: Sequence[str], blocks: int, compiled: bool, repeats: int, threads: int | None, seed: int
) -> None:
    """Time the first layer alone, its inputs at hand as tensors.

    `realised` of our row is its speed-up over UOI divided by `flop_ratio`: 1 where every saved operation is
    saved time. The fragmented rows take the same columns as alternating blocks of user and candidate.
    """
    _settle(threads, seed)
    for shape in shapes:
        rows, user, other, outputs = (int(size) for size in shape.split(","))
        sizes = {"B": rows, "Du": user, "Dr": other, "N": outputs}
        together, apart = _one_block(user, other), _apart(user, other, blocks)
        model = _Layer(user + other, outputs).eval()
        modules = _modules(
            export_ranker(model, together), together, (VANI, UOI, UOI_KERNELS, PLAIN, MARI), compiled
        )
        calls = _calls(modules, one_request(together, rows))
        modules = _modules(export_ranker(model, apart), apart, (FRAGMENTED,), compiled=False)
        calls |= _calls(modules, one_request(apart, rows))
        timings = interleave(calls, repeats=repeats)
        flop_ratio = flops.ratio(user, other, rows)
        _print("first_layer", sizes, timings, flop_ratio)


@main.command()
@click.option(
    "--ranker", "names", multiple=True, default=("mlp", "mmoe", "din", "dcn", "ppnet"), show_default=True
)
@click.option("--rows", multiple=True, type=int, default=ROWS, show_default=True, help="B; may be repeated")
@click.option("--user-fields", type=int, default=100, show_default=True)
@click.option("--item-fields", type=int, default=10, show_default=True)
@click.option("--width", type=int, default=16, show_default=True, help="of an embedding")
@_compiled
@_repeats
@_threads
@_seed
def models(
    names: Sequence[str],
    rows: Sequence[int],
    user_fields: int,
    item_fields: int,
    width: int,
    compiled: bool,
    repeats: int,
    **rest: Any,
) -> None:
    """Time whole rankers with random weights, from ids to scores."""
    _settle(**rest)
    features = rankers.Features(
        user_sizes=(1000,) * user_fields, item_sizes=(1000,) * item_fields, width=width
    )
    for name in names:
        model, schema = _ranker(name, features)
        program = export_ranker(model, schema)
        modules = _modules(program, schema, (VANI, UOI, PLAIN, MARI), compiled)
        found = twins(program, schema, (UOI, MARI))
        for count in rows:
            inputs = one_request(schema, count)
            before, after = (flops.counted(found[way].programs[0], inputs) for way in (UOI, MARI))
            sizes = {"B": count, "Du": user_fields * width, "Dr": item_fields * width}
            _print(name, sizes, interleave(_calls(modules, inputs), repeats=repeats), before / after)


def _ranker(name: str, features: rankers.Features) -> tuple[nn.Module, RankerSchema]:
    """A ranker of the usual size and its schema."""
    tower = rankers.Tower(hidden=(256, 128, 64))
    makers: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: rankers.MLP(features, tower),
        "mmoe": lambda: rankers.MMoE(
            features, rankers.Tower(hidden=(256, 128)), rankers.Tower(hidden=(64,)), num_tasks=2
        ),
        "din": lambda: rankers.DIN(features, tower),
        "dcn": lambda: rankers.DCNv2(features, tower),
        "ppnet": lambda: rankers.PPNet(features, tower),
    }
    if name not in makers:
        raise click.ClickException(f"ranker {name}: expected one of {', '.join(makers)}")
    sides: tuple[tuple[Side, tuple[int, ...]], ...] = (
        ("user", features.user_sizes),
        ("item", features.item_sizes),
    )
    inputs = [
        ModelInput(name=side, side=side, dtype="int64", shape=(len(sizes),), sizes=sizes)
        for side, sizes in sides
    ]
    if name == "din":
        past = (features.item_sizes[0] + 1,)
        inputs.append(ModelInput(name="history", side="user", dtype="int64", shape=(50,), sizes=past))
    outputs = ("click", "like") if name == "mmoe" else ("score",)
    return makers[name]().eval(), RankerSchema(inputs=tuple(inputs), outputs=outputs)


class _Layer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, *parts: Tensor) -> Tensor:
        product: Tensor = self.linear(torch.cat(parts, dim=1))
        return product


def _one_block(user: int, other: int) -> RankerSchema:
    return RankerSchema(
        inputs=(
            ModelInput(name="user", side="user", shape=(user,)),
            ModelInput(name="item", side="item", shape=(other,)),
        )
    )


def _apart(user: int, other: int, blocks: int) -> RankerSchema:
    inputs = []
    sides: tuple[tuple[Side, int], ...] = (("user", user), ("item", other))
    for number in range(blocks):
        for side, width in sides:
            share = width * (number + 1) // blocks - width * number // blocks
            inputs.append(ModelInput(name=f"{side}_{number}", side=side, shape=(max(share, 1),)))
    return RankerSchema(inputs=tuple(inputs))


def _modules(
    program: ExportedProgram, schema: RankerSchema, names: Sequence[str], compiled: bool
) -> dict[str, Scorer]:
    """What is timed, by provider."""
    modules: dict[str, Scorer] = dict(scorers(program, schema, names))
    if compiled:
        torch.compiler.reset()
        modules |= {f"{name}+compile": torch.compile(module) for name, module in modules.items()}
    return modules


def _calls(modules: Mapping[str, Scorer], inputs: Sequence[Tensor]) -> dict[str, Callable[[], object]]:
    """One scoring by each, after a comparison of their scores."""
    scores = {name: _flat(_score(module, inputs)) for name, module in modules.items()}
    first = next(iter(scores))
    for name, found in scores.items():
        error = max(float((a - b).abs().max()) for a, b in zip(found, scores[first], strict=True))
        if not error <= _MOST_ERROR:
            raise click.ClickException(f"{name}: scores differ from those of {first} by {error}")
    return {name: _call(module, inputs) for name, module in modules.items()}


def _call(module: Scorer, inputs: Sequence[Tensor]) -> Callable[[], object]:
    return lambda: _score(module, inputs)


def _score(module: Scorer, inputs: Sequence[Tensor]) -> Any:
    with torch.inference_mode():
        return module(*inputs)


def _flat(scores: Any) -> list[Tensor]:
    return [scores] if isinstance(scores, Tensor) else list(scores)


def _print(op: str, sizes: Mapping[str, int], timings: Mapping[str, Timing], flop_ratio: float) -> None:
    rows = json_rows(op, sizes, _device(), timings, MARI)
    for row in rows:
        if row["provider"] == MARI:
            row["flop_ratio"] = round(flop_ratio, 3)
            row["realised"] = round(row["speedup"][UOI] / flop_ratio, 3)
    print_rows(rows)


def _settle(threads: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


def _device() -> str:
    return f"{device_label()}, {torch.get_num_threads()} threads"


main.add_command(serve)

if __name__ == "__main__":
    main()
