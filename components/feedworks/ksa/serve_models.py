"""KSA (arXiv 2604.24432): what `python -m feedworks.ksa.bench serve` serves and what it asks.

Three servers with random weights of one shape: the hybrid of summary attention and the same decoder with full
attention in our engine, and transformers' `generate` in static batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from feedworks.ksa.settings import PackageConfig
from feedworks.progress import say
from feedworks.serving.server import MODEL_DIR, running_server

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
NUM_BODIES = 64
LEAVING_PROMPT = 256
# The last of 32 long prompts is read after minutes on a CPU; a service would send its client away.
WAIT_S = 24 * 3600.0


class Shape(NamedTuple):
    """What is asked: tokens of a prompt and of its answer, and W of the layers with summaries in chunks."""

    prompt: int
    answer: int
    window: int

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.answer

    @property
    def held(self) -> int:
        """Tokens whose keys and values are there when the last one is chosen: all but that one."""
        return self.context - 1


class Server(NamedTuple):
    """A server that runs: where to send requests, and requests of one prompt length as it takes them."""

    address: str
    url: str
    bodies: Sequence[bytes]


@contextmanager
def running_servers(
    shape: Shape, streams: int, threads: int, seed: int, folder: Path
) -> Iterator[dict[str, Server]]:
    """Start the three servers, with room for just such sequences, and end them.

    Args:
        shape: of all requests.
        streams: at once, the most.
        threads: of torch in each server.
        seed: of weights and prompts.
        folder: for models and logs.

    Yields:
        the servers by name.

    Raises:
        FeedworksError: one did not start; the message names its log.
    """
    bodies = request_bodies(shape, seed)
    with ExitStack() as stack:
        found = {}
        for name, model in write_models(folder, shape, streams, seed).items():
            environment = {
                MODEL_DIR: str(model),
                "FEEDWORKS_STREAMS": str(streams),
                "FEEDWORKS_CONTEXT": str(shape.context),
                "FEEDWORKS_WAIT": str(WAIT_S),
                "FEEDWORKS_WORKERS": "1",
                "OMP_NUM_THREADS": str(threads),
            }
            target, path = (PEER, "/generate") if name == TRANSFORMERS else (SERVICE, "/v1/completions")
            say(f"prompt {shape.prompt}: starting {name}")
            address = stack.enter_context(running_server(target, environment, folder / f"{name}.log"))
            found[name] = Server(address, address + path, bodies[name])
        yield found


def configs(shape: Shape) -> dict[str, Any]:
    """The hybrid, and full attention by configuration."""
    from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows

    num_layers = SIZES["num_hidden_layers"]
    sizes = SIZES | {"max_position_embeddings": max(shape.context, 1024)}
    return {
        OURS: Qwen3KsaConfig(**sizes, windows=hybrid_windows(num_layers, shape.window)),
        FULL: Qwen3KsaConfig(**sizes, windows=[None] * num_layers, summaries=0),
    }


def formula(shape: Shape) -> dict[str, int]:
    """Bytes of keys and values by T(n) that one stream holds at its end, in fp32."""
    from feedworks.ksa.cache import formula_bytes

    made = configs(shape)
    full = formula_bytes(made[FULL], shape.held, 4)
    return {OURS: formula_bytes(made[OURS], shape.held, 4), FULL: full, TRANSFORMERS: full}


def request_bodies(shape: Shape, seed: int) -> dict[str, list[bytes]]:
    """Prompts of random tokens, as each server takes them."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, SIZES["vocab_size"], (NUM_BODIES, shape.prompt)).tolist()
    ours = [_completion(prompt, shape.answer) for prompt in prompts]
    theirs = [json.dumps({"prompt": prompt, "max_tokens": shape.answer}).encode() for prompt in prompts]
    return {OURS: ours, FULL: ours, TRANSFORMERS: theirs}


def leaving_body(shape: Shape) -> bytes:
    """A short prompt with the longest answer that the servers have room for: no client sees its end."""
    length = min(LEAVING_PROMPT, max(1, shape.prompt // 2))
    return _completion(list(range(length)), shape.context - length)


def _completion(prompt: Sequence[int], num_tokens: int) -> bytes:
    settings = {"max_tokens": num_tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    return json.dumps(settings | {"prompt": prompt}).encode()


def write_models(folder: Path, shape: Shape, streams: int, seed: int) -> Mapping[str, Path]:
    """Write a random model for each server, as it loads it."""
    from feedworks.ksa.checkpoint import as_qwen3, save
    from feedworks.ksa.model import Qwen3KsaForCausalLM
    from feedworks.ksa.packaging import write_folder

    limits = PackageConfig(
        max_context=shape.context,
        max_new_tokens=shape.context,
        max_streams=streams,
        max_queue=max(64, streams),
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
    """Write a vocabulary in which every token is whole characters, so that each becomes an event at once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({f"w{number}": number for number in range(SIZES["vocab_size"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder
