"""KSA (arXiv 2604.24432): the models of a run, which differ in nothing but what their attention reads.

`ksa` is the paper's. `full` reads all text in every layer. `window` and `chunk` read what `ksa` reads raw and
no summaries: `window` its last (W + 1) k tokens, `chunk` the tokens of the chunks c - W .. c. The layers that
read everything are the same ones in all three.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows
from feedworks.ksa.settings import ModelConfig

Arm = Literal["ksa", "full", "window", "chunk"]
ARMS: tuple[Arm, ...] = get_args(Arm)
OURS: Arm = "ksa"
FULL: Arm = "full"
NAMES: dict[str, str] = {
    "ksa": "KSA",
    "full": "full attention",
    "window": "sliding window",
    "chunk": "sliding chunks, no summaries",
}


def architecture(arm: Arm, model: ModelConfig, **tokens: int) -> Qwen3KsaConfig:
    """Return the configuration of a model that is trained from scratch.

    Args:
        arm: what its attention reads.
        model: widths, chunk and window.
        tokens: `vocab_size`, `eos_token_id` and whatever else the tokenizer decides.
    """
    return Qwen3KsaConfig(
        hidden_size=model.width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_width,
        intermediate_size=model.hidden,
        max_position_embeddings=model.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        tie_word_embeddings=model.tie,
        initializer_range=model.init_std,
        **sizes(arm, model, model.num_layers),
        **tokens,
    )


def sizes(arm: Arm, model: ModelConfig, num_layers: int) -> dict[str, Any]:
    """Return what summary attention adds to a Qwen3 configuration, for one of the arms."""
    windows = hybrid_windows(num_layers, model.window, model.full_every)
    return {
        "chunk": model.chunk,
        "summaries": model.summaries if arm == OURS else 0,
        "windows": [None] * num_layers if arm == FULL else windows,
        "raw_window": "token" if arm == "window" else "chunk",
    }


def arm_of(config: Qwen3KsaConfig) -> Arm:
    """Say which of the arms a configuration is."""
    if config.summaries:
        return OURS
    if all(window is None for window in config.layer_windows):
        return FULL
    return "window" if config.raw_window == "token" else "chunk"
