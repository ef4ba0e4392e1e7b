"""KSA (arXiv 2604.24432): sizes of a Qwen3-style decoder whose layers read far text through summaries.

The text is cut into chunks of k tokens, each followed by m summary rows. One rule holds for every layer, in
training, prefill and decoding: text of chunk c reads raw text of the chunks c - W .. c and the summaries of
all chunks before those; W is a layer's own, and None reads everything raw.
"""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

from feedworks.errors import ConfigError

WINDOW = 128
FULL_EVERY = 4


def hybrid_windows(num_layers: int, window: int = WINDOW, full_every: int = FULL_EVERY) -> list[int | None]:
    """Return W of each layer: the last of every `full_every` layers reads all text raw.

    Args:
        num_layers: layers of the decoder.
        window: W of the other layers, in chunks.
        full_every: 4 is the paper's ratio of 3 to 1; 0 makes no layer full, 1 all of them.
    """
    return [
        None if full_every and layer % full_every == full_every - 1 else window for layer in range(num_layers)
    ]


@strict
class Qwen3KsaConfig(Qwen3Config):
    r"""A Qwen3 configuration with the sizes of summary attention.

    Attributes:
        chunk: k, text tokens of a chunk.
        summaries: m, summary rows of a chunk; 0 is a baseline without summaries.
        windows: W of each layer in chunks, None for a layer that reads all text raw; without it every fourth
            layer is such a one and the others have 128.
        raw_window: of layers without summaries: `chunk` reads the chunks c - W .. c (sliding chunk
            attention), `token` the last (W + 1) k tokens (sliding window).
        summary_projections: summary rows have queries, keys and values of their own.
        summary_weight: lambda, the share of those against the text's projections.
        summary_bypass: layers that read all text raw leave summary rows as they are.
    """

    model_type = "qwen3_ksa"

    chunk: int = 8
    summaries: int = 1
    windows: list[int | None] | None = None
    raw_window: Literal["chunk", "token"] = "chunk"
    summary_projections: bool = True
    summary_weight: float = 1.0
    summary_bypass: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.windows is None:
            self.windows = hybrid_windows(self.num_hidden_layers)
        _check(self)

    @property
    def layer_windows(self) -> list[int | None]:
        """W of each layer in chunks, None for one that reads all text raw."""
        return list(self.windows or ())


def _check(config: Qwen3KsaConfig) -> None:
    windows = config.layer_windows
    for name, least in (("chunk", 1), ("summaries", 0)):
        if type(value := getattr(config, name)) is not int or value < least:
            raise ConfigError(f"{name}={value!r}: expected a whole number from {least} on")
    if config.raw_window not in ("chunk", "token"):
        raise ConfigError(f"raw_window={config.raw_window!r}: expected chunk or token")
    for name in ("summary_projections", "summary_bypass"):
        if type(value := getattr(config, name)) is not bool:
            raise ConfigError(f"{name}={value!r}: expected true or false")
    if len(windows) != config.num_hidden_layers or any(
        window is not None and (type(window) is not int or window < 0) for window in windows
    ):
        raise ConfigError(
            f"windows={windows}: expected for each of the {config.num_hidden_layers} layers a number of "
            "chunks from 0 on, or null"
        )
    if config.attention_dropout:
        raise ConfigError(f"attention_dropout={config.attention_dropout}: expected 0, there is none")
    if not 0 <= config.summary_weight <= 1:
        raise ConfigError(f"summary_weight={config.summary_weight}: expected 0 .. 1")
    if config.summary_weight and not (config.summary_projections and config.summaries):
        # Without projections of their own the share of those is 0, whatever the file says.
        config.summary_weight = 0.0
