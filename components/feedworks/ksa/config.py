"""KSA (arXiv 2604.24432): every setting of a run, typed, with three named setups.

The paper's public record gives widths, chunk, window and the recipe from scratch; the lengths, rates and
loss weights of its conversion are not published. README.md says where ours come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from feedworks.configuration import at_least, from_preset
from feedworks.errors import ConfigError
from feedworks.ksa.settings import (
    AnnealConfig,
    BaseConfig,
    CorpusConfig,
    DistilConfig,
    EvaluationConfig,
    ExtendConfig,
    GateConfig,
    ModelConfig,
    NeedleConfig,
    PackageConfig,
    PretrainConfig,
    distinct,
)
from feedworks.training.settings import TrainConfig

Mode = Literal["pretrain", "convert"]
Baseline = Literal["full", "window", "chunk"]


@dataclass(frozen=True, kw_only=True)
class KsaConfig:
    """All settings of one run.

    Attributes:
        seed: names every random stream of the run.
        mode: train from scratch, or convert a full-attention model in three stages.
        pretrain: from scratch: the model, the baselines, and the base of a conversion that has none.
        baselines: other attentions, trained like `pretrain` on the same batches.
    """

    seed: int = 0
    mode: Mode = "pretrain"
    model: ModelConfig
    base: BaseConfig
    corpus: CorpusConfig
    needles: NeedleConfig
    pretrain: PretrainConfig
    distil: DistilConfig
    anneal: AnnealConfig
    extend: ExtendConfig
    baselines: tuple[Baseline, ...] = ("full", "window", "chunk")
    evaluation: EvaluationConfig
    gate: GateConfig
    package: PackageConfig

    def __post_init__(self) -> None:
        at_least(0, "", seed=self.seed)
        distinct("baselines", self.baselines, get_args(Baseline), empty=True)
        if self.base.folder and self.mode == "pretrain":
            raise ConfigError("base.folder is converted, not pretrained; set mode=convert, too")
        if self.base.folder and self.corpus.tokenizer:
            raise ConfigError("base.folder brings its own tokenizer; leave corpus.tokenizer out")
        lengths = {
            "pretrain.seq_len": self.pretrain.seq_len,
            "distil.seq_len": self.distil.seq_len,
            "anneal.seq_len": self.anneal.seq_len,
            "extend.lengths": max(self.extend.lengths, default=0),
            "needles.lengths": max(self.needles.lengths),
            "evaluation.seq_len": self.evaluation.seq_len,
            "package.max_context": self.package.max_context,
        }
        self._check_extension()
        for name, length in lengths.items():
            if length > self.model.max_length:
                raise ConfigError(
                    f"{name}={length}: expected at most model.max_length = {self.model.max_length}"
                )

    @property
    def trained_length(self) -> int:
        """Tokens of a row before the extension."""
        return (self.anneal if self.mode == "convert" else self.pretrain).seq_len

    def _check_extension(self) -> None:
        before, chunk = self.trained_length, self.model.chunk
        for length in self.extend.lengths:
            if length <= before:
                raise ConfigError(
                    f"extend.lengths={length}: expected more than the {before} tokens before it"
                )
            if self.extend.pack and length % chunk:
                raise ConfigError(f"extend.lengths={length}: packed rows have whole chunks of {chunk} tokens")
            before = length


def tiny() -> KsaConfig:
    """Seconds on a laptop: the demo on synthetic text, and the tests."""
    training = TrainConfig(epochs=2, batch_size=8, lr=3e-3, warmup_steps=5, grad_clip=1.0, schedule="cosine")
    stage = PretrainConfig(seq_len=256, steps_per_epoch=20, training=training)
    short = replace(training, epochs=1, lr=1e-3)
    return KsaConfig(
        model=ModelConfig(
            width=64,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_width=16,
            hidden=128,
            chunk=4,
            window=4,
            max_length=1024,
        ),
        base=BaseConfig(),
        corpus=CorpusConfig(vocab_size=1024),
        needles=NeedleConfig(lengths=(128, 256), depths=(0.0, 0.5, 1.0), per_cell=2, train_rows=64),
        pretrain=stage,
        distil=DistilConfig(seq_len=256, steps_per_epoch=10, training=short),
        anneal=AnnealConfig(seq_len=256, steps_per_epoch=10, training=short),
        extend=ExtendConfig(lengths=(512,), steps_per_epoch=5, training=replace(short, batch_size=4)),
        evaluation=EvaluationConfig(
            seq_len=256, buckets=(32, 64, 128), max_rows=8, decode_tokens=80, bootstrap=100, max_new_tokens=20
        ),
        gate=GateConfig(max_loss_ratio=2.0),
        package=PackageConfig(max_context=512, max_streams=4, max_new_tokens=128),
    )


def small() -> KsaConfig:
    """Two CPU cores within 40 minutes on the books, whose bytes are the tokens; see the README."""
    training = TrainConfig(
        epochs=12,
        batch_size=6,
        lr=2e-3,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        warmup_steps=50,
        schedule="cosine",
        min_lr_ratio=0.1,
        grad_clip=1.0,
        precision="bf16-mixed",
    )
    # A twentieth and three twentieths of the steps that make the model.
    distilled = replace(training, epochs=1, warmup_steps=6)
    annealed = replace(training, epochs=3, lr=5e-4, warmup_steps=18)
    return KsaConfig(
        model=ModelConfig(
            width=192,
            num_layers=4,
            num_heads=6,
            num_kv_heads=6,
            head_width=32,
            hidden=512,
            window=8,
            max_length=1024,
        ),
        base=BaseConfig(),
        corpus=CorpusConfig(vocab_size=260),
        needles=NeedleConfig(lengths=(256, 512)),
        pretrain=PretrainConfig(seq_len=512, steps_per_epoch=100, training=training, full_share=0.5),
        distil=DistilConfig(seq_len=512, steps_per_epoch=60, training=distilled),
        anneal=AnnealConfig(seq_len=512, steps_per_epoch=60, training=annealed),
        extend=ExtendConfig(lengths=(), steps_per_epoch=20, training=annealed),
        evaluation=EvaluationConfig(seq_len=512, buckets=(64, 128, 256), max_rows=128),
        gate=GateConfig(),
        package=PackageConfig(max_context=1024),
    )


def paper() -> KsaConfig:
    """The conversion of a 4B model: set `base.folder` to a Qwen3 checkpoint; wants GPUs.

    Chunk, window, ratio, optimiser and the weights of the losses are published, the steps of the conversion
    are not; a length extension has 1,600 steps of 240 rows in the recipe from scratch.
    """
    training = _published()
    model = ModelConfig(
        width=2560,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        hidden=9728,
        window=128,
        rope_base=1_000_000.0,
        max_length=131_072,
    )
    rows: dict[str, Any] = {"steps_per_epoch": 160, "pack": True, "checkpointing": True}
    return KsaConfig(
        mode="convert",
        model=model,
        base=BaseConfig(),
        corpus=CorpusConfig(vocab_size=151_936),
        needles=NeedleConfig(
            lengths=(4096, 8192, 16384, 32768, 65536, 131072), per_cell=50, train_share=0.0, train_rows=0
        ),
        pretrain=PretrainConfig(seq_len=8192, training=replace(training, lr=4e-4), **rows),
        distil=DistilConfig(seq_len=8192, training=training, **rows),
        anneal=AnnealConfig(seq_len=8192, training=training, **rows),
        extend=ExtendConfig(lengths=(32768, 65536, 131072), training=training, **rows),
        baselines=(),
        evaluation=EvaluationConfig(
            seq_len=131_072,
            buckets=(1024, 8192, 32768, 65536),
            max_rows=32,
            batch_size=1,
            max_new_tokens=128,
            decode_tokens=2300,
        ),
        gate=GateConfig(max_decode_error=0.5),
        package=PackageConfig(max_context=131_072, max_streams=16, max_new_tokens=8192, dtype="bfloat16"),
    )


def _published() -> TrainConfig:
    """The optimiser of the published scripts, for a later stage."""
    return TrainConfig(
        epochs=10,
        batch_size=240,
        lr=1e-5,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        warmup_steps=100,
        schedule="wsd",
        decay_steps=100,
        min_lr_ratio=0.01,
        grad_clip=1.0,
        precision="bf16-mixed",
        strategy="fsdp",
        accumulate=30,
    )


def trained_baselines(cfg: KsaConfig) -> list[str]:
    """Return the baselines that are trained; the base of a conversion stands for full attention itself."""
    return [arm for arm in cfg.baselines if cfg.mode == "pretrain" or arm != "full"]


PRESETS: dict[str, Callable[[], KsaConfig]] = {"tiny": tiny, "small": small, "paper": paper}


def resolve(preset: str, overrides: Sequence[str] = ()) -> KsaConfig:
    """Return a named setup with `key=value` overrides applied.

    Raises:
        ConfigError: unknown preset or setting (the message lists the known ones), or a bad value.
    """
    return from_preset(PRESETS, preset, overrides)
