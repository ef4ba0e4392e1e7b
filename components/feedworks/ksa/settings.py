"""KSA (arXiv 2604.24432): the sections of a run's settings; config.py puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from feedworks.configuration import at_least, between, positive
from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig

Task = Literal["single", "multi_key", "multi_value", "tracking", "frequent"]
LONGEST = 1 << 20  # tokens; the released model has 128K


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Qwen3 decoder with summary attention. A base from a folder brings its own widths.

    Attributes:
        width: D, of the residual stream.
        num_layers: decoder layers.
        num_heads: H, query heads.
        num_kv_heads: G, key and value heads.
        head_width: of a head.
        hidden: width inside the MLP.
        chunk: k, text tokens of a chunk.
        summaries: m, summary tokens of a chunk.
        window: W, past chunks that a text token reads raw; older ones by their summaries.
        full_every: every so many layers one reads all text raw (the last of each group); 0 for none.
        rope_base: of the rotary positions.
        max_length: longest text, prompt and answer together.
        tie: embedding and output share their weights.
        init_std: standard deviation of random weights.
    """

    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 64
    hidden: int = 768
    chunk: int = 8
    summaries: int = 1
    window: int = 16
    full_every: int = 4
    rope_base: float = 10_000.0
    max_length: int = 4096
    tie: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        at_least(1, "model", width=self.width, num_layers=self.num_layers, hidden=self.hidden)
        at_least(1, "model", chunk=self.chunk, summaries=self.summaries)
        at_least(1, "model", num_heads=self.num_heads, num_kv_heads=self.num_kv_heads)
        at_least(0, "model", window=self.window, full_every=self.full_every)
        positive("model", rope_base=self.rope_base, init_std=self.init_std)
        between(self.chunk, LONGEST, "model", max_length=self.max_length)
        if self.summaries > self.chunk:
            raise ConfigError(f"model.summaries={self.summaries}: expected at most chunk = {self.chunk}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads}: expected a multiple of num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_width < 2 or self.head_width % 2:
            raise ConfigError(f"model.head_width={self.head_width}: expected an even number")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Where the full-attention model of a conversion comes from.

    Attributes:
        folder: a Qwen3 checkpoint with its tokenizer; without one the run trains a base of its own.
        init: summary projections begin as copies of the base's, or at random.
    """

    folder: str = ""
    init: Literal["copy", "random"] = "copy"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How text becomes tokens.

    Attributes:
        vocab_size: of the tokenizer that is fitted on the training split.
        tokenizer: folder of a tokenizer to take instead; a base from a folder brings its own.
    """

    vocab_size: int = 4096
    tokenizer: str = ""

    def __post_init__(self) -> None:
        between(260, 1 << 20, "corpus", vocab_size=self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """Facts hidden in long text, RULER's tasks.

    Attributes:
        tasks: which ones.
        lengths: tokens of a prompt, one row of the heat map each.
        depths: where the needle lies, 0 at the start of the text, 1 at its end.
        per_cell: prompts for each task, length and depth.
        train_share: share of the training steps, those whose rows are prompts with needles: a small model
            has to learn the form of the question.
        train_rows: different needle rows that are trained on; 0 as many as are asked for.
    """

    tasks: tuple[Task, ...] = ("single", "multi_key", "multi_value", "tracking", "frequent")
    lengths: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    per_cell: int = 8
    train_share: float = 0.25
    train_rows: int = 2048

    def __post_init__(self) -> None:
        distinct("needles.tasks", self.tasks, get_args(Task))
        rising = list(self.lengths) == sorted(set(self.lengths))
        if not self.lengths or not rising or self.lengths[0] < 16:
            raise ConfigError(f"needles.lengths={self.lengths}: expected lengths from 16, rising")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError(f"needles.depths={self.depths}: expected numbers from 0 to 1")
        at_least(1, "needles", per_cell=self.per_cell)
        at_least(0, "needles", train_rows=self.train_rows)
        between(0, 1, "needles", train_share=self.train_share)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One training stage.

    Attributes:
        seq_len: T, text tokens of a row.
        steps_per_epoch: optimiser steps between two measurements on the validation split.
        training: the loop; `epochs` times `steps_per_epoch` are all its steps.
        pack: rows begin at documents, several in one row that do not read each other; else a row is any
            window of the text.
        checkpointing: layers are computed again in the backward pass instead of kept, to save memory.
    """

    seq_len: int
    steps_per_epoch: int
    training: TrainConfig
    pack: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        between(8, LONGEST, "", seq_len=self.seq_len)
        at_least(1, "", steps_per_epoch=self.steps_per_epoch)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the stage."""
        return self.training.epochs * self.steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Training from scratch.

    Attributes:
        full_share: share of the steps, the first ones, in which every layer reads all text raw and there are
            no summaries: what a small model learns from near and far text alike it learns faster so. Then
            the summaries' projections begin as the text's, and optimiser and schedule begin anew.
    """

    full_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        between(0, 1, "pretrain", full_share=self.full_share)
        if self.full_share and not 0 < self.num_full_steps < self.num_steps:
            raise ConfigError(
                f"pretrain.full_share={self.full_share}: leaves no step on one side of {self.num_steps} steps"
            )

    @property
    def num_full_steps(self) -> int:
        """Steps with full attention."""
        return round(self.full_share * self.num_steps)

    def parts(self) -> tuple[StageConfig, StageConfig]:
        """The steps with full attention, at a rate that stays, and those after; `full_share` is not 0."""
        rest = self.num_steps - self.num_full_steps
        epochs = max(1, rest // self.steps_per_epoch)
        per_epoch = rest // epochs
        constant = replace(self.training, epochs=1, schedule="constant", decay_steps=0)
        after = replace(self.training, epochs=epochs)
        # What does not fill the epochs after goes before.
        return self._part(self.num_steps - per_epoch * epochs, constant), self._part(per_epoch, after)

    def _part(self, steps_per_epoch: int, training: TrainConfig) -> StageConfig:
        return StageConfig(
            seq_len=self.seq_len,
            steps_per_epoch=steps_per_epoch,
            training=training,
            pack=self.pack,
            checkpointing=self.checkpointing,
        )


@dataclass(frozen=True, kw_only=True)
class DistilConfig(StageConfig):
    """Stage 1 of a conversion: summary parameters learn what full attention does, all else is frozen.

    Attributes:
        lm_weight: of the next token's cross-entropy.
        kl_weight: of KL(teacher || student) over the vocabulary.
        mse_weight: of the squared difference of the layers' attention outputs.
        cos_weight: of one minus their cosine.
        mse_clip: a squared difference counts at most this much.
    """

    lm_weight: float = 1.0
    kl_weight: float = 5.0
    mse_weight: float = 5.0
    cos_weight: float = 0.0
    mse_clip: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, "distil", lm_weight=self.lm_weight, kl_weight=self.kl_weight)
        at_least(0, "distil", mse_weight=self.mse_weight, cos_weight=self.cos_weight)
        positive("distil", mse_clip=self.mse_clip)
        if not self.lm_weight + self.kl_weight + self.mse_weight + self.cos_weight:
            raise ConfigError("distil: every weight of the loss is 0; set distil.kl_weight")


@dataclass(frozen=True, kw_only=True)
class AnnealConfig(StageConfig):
    """Stage 2: the whole model trains while lambda takes the summary projections away.

    Attributes:
        start: share of the steps after which lambda leaves 1.
        end: share after which it is 0.
    """

    start: float = 0.1
    end: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        between(0, 1, "anneal", start=self.start, end=self.end)
        if self.start >= self.end:
            raise ConfigError(f"anneal.start={self.start}: expected less than anneal.end = {self.end}")


@dataclass(frozen=True, kw_only=True)
class ExtendConfig:
    """Stage 3: longer rows, one length after the other, each with a fresh optimiser.

    Attributes:
        lengths: of the rows, rising; none leaves the stage out.
        rope_power: the base of the rotary positions grows by (length / length before) ** rope_power.
        steps_per_epoch: at each length.
        training: at each length.
        pack: see `StageConfig`.
        checkpointing: see `StageConfig`.
    """

    lengths: tuple[int, ...]
    rope_power: float = 1.0
    steps_per_epoch: int
    training: TrainConfig
    pack: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        at_least(1, "extend", steps_per_epoch=self.steps_per_epoch)
        at_least(0, "extend", rope_power=self.rope_power)
        if list(self.lengths) != sorted(set(self.lengths)) or (self.lengths and self.lengths[0] < 8):
            raise ConfigError(f"extend.lengths={self.lengths}: expected lengths from 8, rising, or none")

    def stage(self, length: int) -> StageConfig:
        """The stage at one of the lengths."""
        return StageConfig(
            seq_len=length,
            steps_per_epoch=self.steps_per_epoch,
            training=self.training,
            pack=self.pack,
            checkpointing=self.checkpointing,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is reported.

    Attributes:
        seq_len: tokens of a row whose perplexity is measured.
        buckets: borders between positions whose perplexity is shown apart, rising.
        max_rows: rows of a split that are measured at most; 0 for all.
        batch_size: rows computed at once.
        max_new_tokens: longest answer to a needle prompt.
        cache_lengths: texts whose cache is allocated and measured.
        decode_tokens: tokens that are decoded one by one against the prefill.
        bootstrap: resamples behind an interval.
    """

    seq_len: int = 1024
    buckets: tuple[int, ...] = (128, 256, 512)
    max_rows: int = 64
    batch_size: int = 8
    max_new_tokens: int = 24
    cache_lengths: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536, 131072)
    decode_tokens: int = 300
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        at_least(1, "evaluation", batch_size=self.batch_size, bootstrap=self.bootstrap)
        at_least(1, "evaluation", max_new_tokens=self.max_new_tokens)
        at_least(2, "evaluation", decode_tokens=self.decode_tokens)
        at_least(0, "evaluation", max_rows=self.max_rows)
        between(8, LONGEST, "evaluation", seq_len=self.seq_len)
        # The first token of a row has no loss.
        inside = all(0 < border < self.seq_len - 1 for border in self.buckets)
        if list(self.buckets) != sorted(set(self.buckets)) or not inside:
            raise ConfigError(
                f"evaluation.buckets={self.buckets}: expected positions below {self.seq_len - 1}, rising"
            )
        if not self.cache_lengths or min(self.cache_lengths) < 1:
            raise ConfigError(f"evaluation.cache_lengths={self.cache_lengths}: expected lengths such as 4096")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When the model may be packaged.

    Attributes:
        max_loss_ratio: most held-out loss as a multiple of the full-attention model's, where there is one.
        min_needle: least mean needle accuracy.
        max_decode_error: largest difference of a decoded logit from the prefill's.
        max_cache_slack: share by which the allocated cache may pass the formula's bytes.
    """

    max_loss_ratio: float = 1.01
    min_needle: float = 0.0
    max_decode_error: float = 1e-3
    max_cache_slack: float = 0.05

    def __post_init__(self) -> None:
        positive("gate", max_loss_ratio=self.max_loss_ratio)
        between(0, 1, "gate", min_needle=self.min_needle)
        at_least(0, "gate", max_decode_error=self.max_decode_error, max_cache_slack=self.max_cache_slack)


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """Limits of the service that the package carries.

    Attributes:
        max_context: tokens of prompt and answer together.
        max_streams: requests that are decoded at once; each has a slot of the cache.
        max_queue: requests that wait for a slot.
        max_new_tokens: longest answer.
        dtype: of the weights and the cache in the service.
    """

    max_context: int = 2048
    max_streams: int = 8
    max_queue: int = 64
    max_new_tokens: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        between(8, LONGEST, "package", max_context=self.max_context, max_new_tokens=self.max_new_tokens)
        at_least(1, "package", max_streams=self.max_streams)
        at_least(0, "package", max_queue=self.max_queue)


def distinct(name: str, values: Sequence[str], known: Sequence[str], *, empty: bool = False) -> None:
    """Refuse lists with an unknown entry or one entry twice.

    Raises:
        ConfigError: it names the setting and what is known.
    """
    if (not values and not empty) or len(set(values)) < len(values) or not set(values) <= set(known):
        raise ConfigError(f"{name}={','.join(values)}: expected some of {', '.join(known)}, each once")
