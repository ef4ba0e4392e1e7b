"""KSA (arXiv 2604.24432): bytes of the cache against the paper's formula, and a decoding step by length.

`python -m feedworks.ksa.bench cache` and `... decode`. Caches are measured as allocated for one sequence of
just that length, next to the formula T(n), in the shape of the published 4B model. Steps are timed over
caches that are filled with random numbers: what a step costs does not depend on what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.scoring import cache_size
from feedworks.metrics.latency import Timing, device_label, interleave, json_rows
from feedworks.progress import say

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
STEP_LENGTHS = (4096, 8192, 16384, 32768)
# arXiv 2604.24432, the model converted from Qwen3-4B-Base.
PUBLISHED = {
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
# Four of its layers with a quarter of its heads and width: a step that a laptop can time.
STEP = PUBLISHED | {
    "num_hidden_layers": 4,
    "hidden_size": 640,
    "intermediate_size": 2432,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
WINDOW = 128


def configs(sizes: dict[str, Any]) -> dict[str, Qwen3KsaConfig]:
    """Return the model with summaries in all layers, in three of four, and in none."""
    num_layers = sizes["num_hidden_layers"]
    return {
        "ksa": Qwen3KsaConfig(**sizes, windows=hybrid_windows(num_layers, WINDOW, full_every=0)),
        "hybrid": Qwen3KsaConfig(**sizes, windows=hybrid_windows(num_layers, WINDOW)),
        "full": Qwen3KsaConfig(**sizes, windows=[None] * num_layers, summaries=0),
    }


def cache_rows(
    lengths: Sequence[int] = LENGTHS, dtype: torch.dtype = torch.bfloat16
) -> Iterator[dict[str, Any]]:
    """Yield for each length and kind of model the bytes of one sequence's cache, allocated and by formula.

    Args:
        lengths: tokens; the cache is made for just so many.
        dtype: of keys and values.

    Yields:
        `bytes` allocated, `formula_bytes`, `slack` between them as a share, `held_bytes` of a full sequence,
        and how often the cache fits into that of full attention: `ratio`, `formula_ratio`.
    """
    made = configs(PUBLISHED)
    for length in lengths:
        sizes = {name: cache_size(config, length, dtype) for name, config in made.items()}
        full = sizes["full"]
        for name, size in sizes.items():
            yield {
                "op": "cache",
                "model": name,
                "tokens": length,
                "bytes": size.num_bytes,
                "formula_bytes": size.formula_bytes,
                "held_bytes": size.held_bytes,
                "slack": size.num_bytes / size.formula_bytes - 1,
                "ratio": full.num_bytes / size.num_bytes,
                "formula_ratio": full.formula_bytes / size.formula_bytes,
            }


def step_rows(
    lengths: Sequence[int] = STEP_LENGTHS,
    batches: Sequence[int] = (1, 8),
    *,
    dtype: torch.dtype = torch.float32,
    repeats: int = 10,
) -> Iterator[dict[str, Any]]:
    """Yield the time of one decoding step at each length, for all kinds of model and for transformers' own.

    A step is the mean of a chunk's k steps, the last of which makes a summary.

    Args:
        lengths: tokens that each sequence holds.
        batches: sequences of a step.
        dtype: of weights and caches.
        repeats: timed rounds, the providers in turns.
    """
    torch.manual_seed(0)
    made = {name: Qwen3KsaForCausalLM(config).eval().to(dtype) for name, config in configs(STEP).items()}
    chunk = made["ksa"].config.chunk
    theirs = Qwen3ForCausalLM(Qwen3Config(**STEP)).eval().to(dtype)
    for length in lengths:
        for batch in batches:
            say(f"{length} tokens, {batch} at once: {repeats + 1} rounds of {chunk} steps")
            steps = {name: ksa_steps(model, batch, length, chunk) for name, model in made.items()}
            steps["transformers"] = transformers_steps(theirs, batch, length, chunk)
            timings = interleave(steps, repeats=repeats, warmup=1)
            means = {name: Timing(*(value / chunk for value in each)) for name, each in timings.items()}
            del steps  # the next caches may need the room
            op = f"decode_{str(dtype).removeprefix('torch.')}"
            shape = {"tokens": length, "batch": batch}
            yield from json_rows(op, shape, device_label(), means, ours="hybrid")


def ksa_steps(model: Qwen3KsaForCausalLM, batch: int, length: int, number: int) -> Callable[[], object]:
    """Return `number` steps of `batch` sequences that hold `length` tokens, the same ones at each call."""
    cache = KsaCache(model.config, batch, length + number, dtype=model.dtype)
    for ring in cache.rings:
        ring.key_NGLD.normal_()
        ring.value_NGLD.normal_()
    slots, token_B = list(range(batch)), torch.zeros(batch, dtype=torch.int64)

    def steps() -> None:
        cache.lengths[:] = [length] * batch
        for ring in cache.rings:
            ring.length_N.fill_(length)
        for _ in range(number):
            model.decode(token_B, cache, slots)

    return steps


def transformers_steps(model: Qwen3ForCausalLM, batch: int, length: int, number: int) -> Callable[[], object]:
    """Return the same steps of transformers' own model with its default cache."""
    config = model.config
    shape = (batch, config.num_key_value_heads, length, config.head_dim)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, dtype=model.dtype) for _ in range(2)), layer)
    token_B1 = torch.zeros(batch, 1, dtype=torch.int64)

    def steps() -> None:
        with torch.no_grad():
            for _ in range(number):
                model(token_B1, past_key_values=cache, use_cache=True)
        cache.crop(-number)

    return steps
