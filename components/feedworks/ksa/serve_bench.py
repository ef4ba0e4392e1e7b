"""KSA (arXiv 2604.24432): the service under load, `python -m feedworks.ksa.bench serve`.

Three servers with random weights of one shape: the hybrid of summary attention, the same decoder with full
attention in the same engine, and transformers' `generate` in static batches. This process sends the same
prompts to them in turns and reads the streams.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from feedworks.ksa.settings import PackageConfig
from feedworks.metrics.latency import device_label, print_rows
from feedworks.serving.server import running_server
from feedworks.serving.stream_load import StreamLoad, run_streams

SERVICE = "feedworks.ksa.service:KsaService"
PEER = "feedworks.ksa.peer_service:StaticBatches"
OURS, FULL, TRANSFORMERS = "ksa", "full", "transformers"
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": None,
}


class Shape(NamedTuple):
    """What is asked: tokens of a prompt and of its answer, and W of the layers with summaries in chunks."""

    prompt: int = 512
    answer: int = 64
    window: int = 16

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.answer


@click.command()
@click.option("--streams", type=int, multiple=True, default=(1, 8, 32), help="at once; may be repeated")
@click.option("--prompt", type=int, default=512, show_default=True, help="tokens of a prompt")
@click.option("--answer", type=int, default=64, show_default=True, help="tokens of an answer")
@click.option("--window", type=int, default=16, show_default=True, help="chunks read raw")
@click.option("--requests", type=int, default=2, show_default=True, help="of each stream and provider")
@click.option("--threads", type=int, default=1, show_default=True, help="of torch in each server")
@click.option("--seed", type=int, default=0, show_default=True)
def serve(
    streams: Sequence[int],
    prompt: int,
    answer: int,
    window: int,
    requests: int,
    threads: int,
    seed: int,
) -> None:
    """Streams of greedy answers; closed loop."""
    shape = Shape(prompt, answer, window)
    most = max(streams)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = {}
        for name, model in write_models(folder, shape, most, seed).items():
            environment = {
                "FEEDWORKS_MODEL_DIR": str(model),
                "FEEDWORKS_STREAMS": str(most),
                "OMP_NUM_THREADS": str(threads),
            }
            target = PEER if name == TRANSFORMERS else SERVICE
            addresses[name] = stack.enter_context(running_server(target, environment, folder / f"{name}.log"))
        bodies = request_bodies(shape, seed)
        memory = stream_bytes(shape)
        device = f"{device_label()}, {threads} threads a server"
        measure(addresses, bodies, 2, 1)  # warms up
        for count in streams:
            loads = measure(addresses, bodies, count, requests)
            print_rows(rows(loads, count, shape, memory, device))


def measure(
    addresses: Mapping[str, str], bodies: Mapping[str, Sequence[bytes]], count: int, requests: int
) -> dict[str, StreamLoad]:
    """Load the providers in turns, so that a busy machine is equally busy for all."""
    found: dict[str, list[StreamLoad]] = {name: [] for name in addresses}
    names = list(addresses)
    for turn in range(requests):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            path = "/generate" if name == TRANSFORMERS else "/v1/completions"
            found[name].append(run_streams(addresses[name] + path, bodies[name], count, 1))
    return {
        name: StreamLoad([each for load in loads for each in load.first_s], sum(x.duration_s for x in loads))
        for name, loads in found.items()
    }


def rows(
    loads: Mapping[str, StreamLoad], count: int, shape: Shape, memory: Mapping[str, int], device: str
) -> Iterator[dict[str, Any]]:
    """Yield tokens per second, seconds to the first token and bytes of one stream for each provider."""
    rate = {name: len(load.first_s) * shape.answer / load.duration_s for name, load in loads.items()}
    for name, load in loads.items():
        row = {
            "op": "serve_stream",
            "provider": name,
            "shape": {"streams": count, "prompt": shape.prompt, "answer": shape.answer},
            "device": device,
            "tokens_per_s": round(rate[name], 1),
            "first_p50_s": round(load.quantile_s(0.5), 4),
            "first_p99_s": round(load.quantile_s(0.99), 4),
            "bytes_per_stream": memory[name],
        }
        if name == OURS:
            row["throughput"] = {
                peer: round(rate[OURS] / other, 3) for peer, other in rate.items() if peer != OURS
            }
        yield row


def stream_bytes(shape: Shape) -> dict[str, int]:
    """Bytes that keys and values of one stream hold at its end, in fp32."""
    from feedworks.ksa.cache import formula_bytes

    made = configs(shape)
    full = formula_bytes(made[FULL], shape.context, 4)
    return {OURS: formula_bytes(made[OURS], shape.context, 4), FULL: full, TRANSFORMERS: full}


def configs(shape: Shape) -> dict[str, Any]:
    """The hybrid, and full attention by configuration."""
    from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows

    num_layers = SIZES["num_hidden_layers"]
    sizes = SIZES | {"max_position_embeddings": max(shape.context, 1024)}
    return {
        OURS: Qwen3KsaConfig(**sizes, windows=hybrid_windows(num_layers, shape.window)),
        FULL: Qwen3KsaConfig(**sizes, windows=[None] * num_layers, summaries=0),
    }


def request_bodies(shape: Shape, seed: int) -> dict[str, list[bytes]]:
    """Prompts of random tokens, as each provider takes them."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, SIZES["vocab_size"], (64, shape.prompt)).tolist()
    ours = {"max_tokens": shape.answer, "temperature": 0, "stream": True, "ignore_eos": True}
    for_us = [json.dumps(ours | {"prompt": prompt}).encode() for prompt in prompts]
    for_them = [json.dumps({"prompt": prompt, "max_tokens": shape.answer}).encode() for prompt in prompts]
    return {OURS: for_us, FULL: for_us, TRANSFORMERS: for_them}


def write_models(folder: Path, shape: Shape, streams: int, seed: int) -> dict[str, Path]:
    """Write a random model for each provider, as it loads it."""
    from feedworks.ksa.checkpoint import as_qwen3, save
    from feedworks.ksa.model import Qwen3KsaForCausalLM
    from feedworks.ksa.packaging import write_folder

    limits = PackageConfig(
        max_context=shape.context, max_new_tokens=shape.answer, max_streams=streams, max_queue=64
    )
    tokenizer = write_tokenizer(folder / "tokenizer")
    found = {}
    for name, config in configs(shape).items():
        torch.manual_seed(seed)
        model = Qwen3KsaForCausalLM(config).eval()
        save(model, folder / f"{name}-model")
        found[name] = folder / name
        write_folder(found[name], folder / f"{name}-model", tokenizer, limits, {})
        if name == FULL:
            found[TRANSFORMERS] = folder / TRANSFORMERS
            save(as_qwen3(model), found[TRANSFORMERS])
    return found


def write_tokenizer(folder: Path) -> Path:
    """Write a vocabulary in which every token is text of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{number}" for number in range(SIZES["vocab_size"] - len(alphabet))]
    backend = Tokenizer(models.BPE({word: at for at, word in enumerate([*alphabet, *words])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    serve()
