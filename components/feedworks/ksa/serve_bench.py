"""KSA (arXiv 2604.24432): the service under load, `python -m feedworks.ksa.bench serve`.

Three servers with random weights of one shape, see `feedworks.ksa.serve_models`. This process sends the same
prompts to them in turns and reads the streams: clients come all at once, each with a prompt of its own, and
wait for all of a greedy answer.

What the rates mean. `tokens_per_s` is answers over the whole time; behind a long prompt most of that is
reading. `prompt_tokens_per_s` is over the time in which any client waits for its first token,
`decode_tokens_per_s` over that in which any is between its first token and its last. With one stream they
are the speed of reading and of a step. With many, our engine does both in turns: it reads one long prompt at
a time, in parts, and gives those that are read a fifth of the time. An answer that is short against
the reading is over before the next prompt is read, so that few streams decode side by side
(`decoding_at_once`) and the rows tell little of a cache with many sequences; `python -m feedworks.ksa.bench
decode --batch 32` does. Transformers reads all prompts of a batch, then decodes all: its first tokens come
late and together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click
import torch

from feedworks.errors import FeedworksError
from feedworks.ksa.serve_memory import leaving_rows, memory_rows
from feedworks.ksa.serve_models import OURS, WAIT_S, Server, Shape, running_servers
from feedworks.ksa.settings import LONGEST
from feedworks.metrics.latency import device_label, markdown_table, print_rows
from feedworks.progress import Progress
from feedworks.serving.stream_load import StreamLoad, joined, run_streams

LEAVE_AT_ONCE = 8
SHORTEST = 8  # tokens of a sequence, by the package's limits
_COUNT = click.IntRange(min=1)

Row = dict[str, Any]


@click.command()
@click.option(
    "--streams", type=_COUNT, multiple=True, default=(1, 8, 32), show_default=True, help="at once; repeatable"
)
@click.option(
    "--prompt",
    "prompts",
    type=_COUNT,
    multiple=True,
    default=(2048, 8192),
    show_default=True,
    help="tokens of a prompt; repeatable",
)
@click.option("--answer", type=_COUNT, default=64, show_default=True, help="tokens of an answer")
@click.option("--answers", type=_COUNT, default=3, show_default=True, help="of each row, at least")
@click.option(
    "--leaving", type=click.IntRange(min=0), default=100, show_default=True, help="clients that leave"
)
@click.option("--window", type=_COUNT, default=128, show_default=True, help="chunks of 8 tokens read raw")
@click.option("--threads", type=_COUNT, default=2, show_default=True, help="of torch in each server")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="of weights, prompts")
def serve(
    streams: Sequence[int],
    prompts: Sequence[int],
    answer: int,
    answers: int,
    leaving: int,
    window: int,
    threads: int,
    seed: int,
) -> None:
    """Tokens per second, time to the first token and bytes of the cache with many streams.

    KSA against the same model with full attention in the same engine and against transformers' generate in
    static batches; clients that leave in mid-stream. JSON, one row a line; tables at the end on stderr.

    On two cores of an AMD EPYC (Zen 5) the defaults take 13 minutes, most of it 32 prompts of 8,192 tokens,
    and 10 GB of memory, most of it transformers' for those. `--prompt 2048` takes 3 minutes.
    """
    shapes = [_shape(prompt, answer, window) for prompt in dict.fromkeys(prompts)]
    device = f"{device_label('cuda' if torch.cuda.is_available() else 'cpu')}, torch threads {threads}"
    most = max(streams)
    rows: list[Row] = []
    try:
        for number, shape in enumerate(shapes):
            with (
                tempfile.TemporaryDirectory() as folder,
                running_servers(shape, most, threads, seed, Path(folder)) as servers,
            ):
                found = [memory_rows(servers, shape, most, device)]
                if leaving and not number:  # one prompt length tells enough
                    found.append(leaving_rows(servers, shape, leaving, min(LEAVE_AT_ONCE, most), device))
                found += [
                    _measured(servers, shape, count, answers, device) for count in dict.fromkeys(streams)
                ]
                for row in chain.from_iterable(found):
                    print_rows([row])
                    rows.append(row)
    except FeedworksError as error:
        raise click.ClickException(str(error)) from None
    click.echo(tables(rows), err=True)


def _shape(prompt: int, answer: int, window: int) -> Shape:
    if not SHORTEST <= prompt + answer <= LONGEST:
        told = f"--prompt {prompt} --answer {answer}: expected {SHORTEST} .. {LONGEST} tokens together"
        raise click.UsageError(told)
    return Shape(prompt, answer, window)


def _measured(
    servers: Mapping[str, Server], shape: Shape, streams: int, answers: int, device: str
) -> Iterator[Row]:
    yield from stream_rows(measure(servers, shape, streams, -(-answers // streams)), streams, shape, device)


def measure(servers: Mapping[str, Server], shape: Shape, streams: int, rounds: int) -> dict[str, StreamLoad]:
    """Load the servers in turns, so that a busy machine is equally busy for all.

    Args:
        servers: by name.
        shape: of the requests.
        streams: clients, with one request in each round.
        rounds: every one begins with another server.

    Raises:
        FeedworksError: a server does not stream, or an answer has not as many tokens as were asked for.
    """
    found: dict[str, list[StreamLoad]] = {name: [] for name in servers}
    names = list(servers)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            server = servers[name]
            label = f"prompt {shape.prompt}, {_streams(streams)}, round {turn + 1}/{rounds}: {name}, tokens"
            with Progress(label, total=streams * shape.answer) as shown:
                shown.advance(0)  # says what begins: the first token may take minutes
                load = run_streams(server.url, server.bodies, streams, 1, within_s=WAIT_S, came=shown.advance)
            for answer in load.answers:
                if answer.num_events != shape.answer:
                    raise FeedworksError(
                        f"{name}: an answer has {answer.num_events} tokens, asked for {shape.answer}"
                    )
            found[name].append(load)
    return {name: joined(loads) for name, loads in found.items()}


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def stream_rows(loads: Mapping[str, StreamLoad], streams: int, shape: Shape, device: str) -> Iterator[Row]:
    """Yield for each server tokens per second, of all, of reading and of decoding, and seconds to the first.

    Args:
        loads: what each was measured to do.
        streams: clients at once.
        shape: of the requests.
        device: where the servers ran.

    Yields:
        see the top of this file; for ours `throughput` = {peer: our tokens per second / the peer's}.
    """
    rate = {name: load.num_events / load.duration_s for name, load in loads.items()}
    for name, load in loads.items():
        num_answers = len(load.answers)
        decoded, decoding_s = load.num_events - num_answers, load.streamed_s
        row: Row = {
            "op": "serve_stream",
            "provider": name,
            "shape": {"streams": streams, "prompt": shape.prompt, "answer": shape.answer},
            "device": device,
            "answers": num_answers,
            "tokens": load.num_events,
            "tokens_per_s": round(rate[name], 2),
            "first_p50_s": round(load.quantile_s(0.5), 4),
            "first_p99_s": round(load.quantile_s(0.99), 4),
            "prompt_tokens_per_s": round(num_answers * shape.prompt / load.waited_s, 1),
            "decode_tokens_per_s": round(decoded / decoding_s, 2) if decoding_s else None,
            "decoding_at_once": round(load.at_once, 2),
        }
        if name == OURS:
            row["throughput"] = {
                peer: round(rate[OURS] / other, 3) for peer, other in rate.items() if peer != OURS
            }
        yield row


def tables(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each kind of row, without the machine's name."""
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        kept = [
            {k: v for k, v in row.items() if k not in ("op", "device")} for row in rows if row["op"] == op
        ]
        found.append(f"{op}\n\n{markdown_table(kept)}\n")
    return "\n".join([rows[0]["device"], "", *found])


if __name__ == "__main__":
    serve()
