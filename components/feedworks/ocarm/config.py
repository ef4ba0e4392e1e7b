"""OCARM (arXiv 2604.25839): every setting of a run, typed, with three named setups.

The paper's public record gives no numbers (its lambda, widths, queries and content days are unknown);
README.md says where ours come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from feedworks.configuration import at_least, between, from_preset, positive
from feedworks.contracts.retention import HORIZONS
from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig

Similarity = Literal["cosine", "mse", "infonce"]
MOST_DROPOUT = 0.99
LONGEST = 10_000


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """How event logs become samples.

    Attributes:
        idle_days: days without an event after which the next event is a conversion.
        content_days: D, days of content after it.
        horizons: d of the labels LT_d, rising.
        first_is_conversion: a user's first event is a conversion, too.
        landing_item: the item of the conversion stands for the ad's creative, known at bid time.
        max_history: T, latest events that are kept.
        max_returns: A, latest earlier returns that are kept.
        valid_share: share of the samples that chooses epochs; by time, after the training split.
        test_share: share of the samples at the end of the log.
        overlap: label windows begin one day after the conversion, whatever `content_days` says: the reading
            of the paper in which content and labels overlap. Never for a model that is compared.
        embargo: samples before the test period whose label windows reach into it are left out: a model that
            is trained when it begins can not know them.
    """

    idle_days: float = 2.0
    content_days: int = 1
    horizons: tuple[int, ...] = (1, 7)
    first_is_conversion: bool = False
    landing_item: bool = False
    max_history: int = 50
    max_returns: int = 10
    valid_share: float = 0.1
    test_share: float = 0.2
    overlap: bool = False
    embargo: bool = True

    def __post_init__(self) -> None:
        positive("samples", idle_days=self.idle_days)
        between(1, LONGEST, "samples", content_days=self.content_days)
        between(1, LONGEST, "samples", max_history=self.max_history, max_returns=self.max_returns)
        known = set(self.horizons) <= set(HORIZONS)
        if not self.horizons or not known or list(self.horizons) != sorted(set(self.horizons)):
            raise ConfigError(f"samples.horizons={self.horizons}: expected some of {HORIZONS}, rising")
        between(0.001, 0.9, "samples", valid_share=self.valid_share, test_share=self.test_share)
        if self.valid_share + self.test_share > 0.9:
            raise ConfigError(
                f"samples.valid_share + samples.test_share = {self.valid_share + self.test_share:g}: "
                "expected at most 0.9, so that there is something to learn from"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Teacher and student.

    Attributes:
        width: D, of a token in any sequence and of the vectors that are distilled.
        code_width: E, of the embedding of a code (surface, hour, segment and the like).
        num_heads: attention heads.
        items_per_day: N, first items of a content day that the teacher reads.
        num_queries: Q, of a Q-Former.
        qformer_layers: layers of a Q-Former.
        tower: widths of the layers from fused sequences to a vector.
        hidden: widths of the retention net's layers.
        gate_hidden: width inside its gates; 0 for that of the layer.
        dropout: probability in every network.
        item_ids: items have embeddings of their own beside category and vector.
        view_dropout: share of the training rows in which one whole view of the observables is missing, so
            that a request with a missing view is nothing new.
    """

    width: int = 64
    code_width: int = 8
    num_heads: int = 4
    items_per_day: int = 20
    num_queries: int = 4
    qformer_layers: int = 2
    tower: tuple[int, ...] = (256, 128)
    hidden: tuple[int, ...] = (256, 128, 64)
    gate_hidden: int = 32
    dropout: float = 0.1
    item_ids: bool = False
    view_dropout: float = 0.05

    def __post_init__(self) -> None:
        at_least(1, "model", num_heads=self.num_heads, code_width=self.code_width)
        at_least(1, "model", num_queries=self.num_queries, qformer_layers=self.qformer_layers)
        between(1, LONGEST, "model", items_per_day=self.items_per_day)
        at_least(0, "model", gate_hidden=self.gate_hidden)
        between(0, MOST_DROPOUT, "model", dropout=self.dropout, view_dropout=self.view_dropout)
        if self.width < 1 or self.width % self.num_heads:
            raise ConfigError(
                f"model.width={self.width}: expected a multiple of num_heads = {self.num_heads}"
            )
        for name in ("tower", "hidden"):
            widths: tuple[int, ...] = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ConfigError(f"model.{name}={widths}: expected widths such as 64,32")


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How the student learns from the table of teacher vectors.

    Attributes:
        weight: lambda, of the alignment beside the retention loss; 0 turns it off.
        similarity: `cosine` (1 - cos), `mse`, or `infonce` (find one's own vector among the batch's).
        temperature: of `infonce`.
        warm_start: the retention net and the encoder of its observables start with the teacher's weights.
        logit_weight: of the teacher's probabilities as targets, in the control that distils those instead.
    """

    weight: float = 1.0
    similarity: Similarity = "cosine"
    temperature: float = 0.1
    warm_start: bool = True
    logit_weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, "distil", weight=self.weight, logit_weight=self.logit_weight)
        positive("distil", temperature=self.temperature)
        if self.similarity not in get_args(Similarity):
            raise ConfigError(
                f"distil.similarity={self.similarity!r}: expected one of {', '.join(get_args(Similarity))}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is reported.

    Attributes:
        seeds: every arm is trained once with each.
        bootstrap: resamples behind an interval.
        bins: of the calibration table, and of similarity against gain.
        batch_size: rows scored at once.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    bootstrap: int = 1000
    bins: int = 10
    batch_size: int = 4096

    def __post_init__(self) -> None:
        at_least(1, "evaluation", bootstrap=self.bootstrap, batch_size=self.batch_size)
        between(2, 1000, "evaluation", bins=self.bins)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"evaluation.seeds={self.seeds}: expected different numbers such as 0,1,2")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where features go online.

    Attributes:
        repo: folder of the feature repository whose store is filled; without it an embedded store is made in
            the step's own output.
    """

    repo: str = ""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a run stops, and when its student may be packaged.

    Attributes:
        max_teacher_auc: a teacher that does better on validation has seen its labels.
        max_observable_auc: so has a model of the observables that does better on validation, or a single
            observable column that does on the training rows.
        min_gain: least AUC of the student over the base on test, mean over horizons and seeds.
    """

    max_teacher_auc: float = 0.95
    max_observable_auc: float = 0.95
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        limits = {"max_teacher_auc": self.max_teacher_auc, "max_observable_auc": self.max_observable_auc}
        between(0.5, 1, "gate", **limits)
        between(-1, 1, "gate", min_gain=self.min_gain)


@dataclass(frozen=True, kw_only=True)
class OcarmConfig:
    """All settings of one run.

    Attributes:
        seed: names every random stream of the run; the packaged student is trained with it.
    """

    seed: int = 0
    samples: SamplesConfig
    model: ModelConfig
    teacher: TrainConfig
    student: TrainConfig
    distil: DistilConfig
    evaluation: EvaluationConfig
    gate: GateConfig
    store: StoreConfig = StoreConfig()

    def __post_init__(self) -> None:
        at_least(0, "", seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the data decides about a model.

    Attributes:
        num_items: I, rows of the item table with row 0, which stands for unknown items.
        vector_width: V, of the items' vectors.
    """

    num_items: int
    vector_width: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that rebuilds a model and reads its inputs; stands in the `config.json` of a model folder.

    Attributes:
        model: widths.
        samples: horizons and lengths of the sequences.
        sizes: of the item table.
    """

    model: ModelConfig
    samples: SamplesConfig
    sizes: Sizes


def tiny() -> OcarmConfig:
    """Seconds on a laptop: the demo on synthetic events, and the tests."""
    training = TrainConfig(epochs=6, batch_size=256, lr=3e-3, patience=3)
    return OcarmConfig(
        samples=SamplesConfig(max_history=20, max_returns=5),
        model=ModelConfig(
            width=16,
            code_width=4,
            num_heads=2,
            qformer_layers=1,
            num_queries=2,
            tower=(32,),
            hidden=(32, 16),
            gate_hidden=8,
        ),
        teacher=training,
        student=training,
        distil=DistilConfig(),
        evaluation=EvaluationConfig(seeds=(0,), bootstrap=200),
        gate=GateConfig(min_gain=-1.0),
    )


def small() -> OcarmConfig:
    """Minutes on two CPU cores for planted data and MovieTweetings."""
    training = TrainConfig(
        epochs=12,
        batch_size=256,
        lr=2e-3,
        weight_decay=0.01,
        schedule="cosine",
        grad_clip=1.0,
        patience=4,
    )
    return OcarmConfig(
        samples=SamplesConfig(),
        model=ModelConfig(
            width=32, tower=(128, 64), hidden=(64, 32), num_queries=2, qformer_layers=1, gate_hidden=16
        ),
        teacher=training,
        student=training,
        distil=DistilConfig(weight=3.0),
        evaluation=EvaluationConfig(),
        gate=GateConfig(),
    )


def paper() -> OcarmConfig:
    """Defaults of the dossier for logs of millions of users, as the paper gives none; wants a GPU."""
    training = TrainConfig(
        epochs=10, batch_size=1024, lr=1e-3, weight_decay=0.01, grad_clip=1.0, patience=2, warmup_steps=500
    )
    return replace(
        small(),
        model=ModelConfig(item_ids=True),
        teacher=training,
        student=training,
        distil=DistilConfig(),
    )


PRESETS: dict[str, Callable[[], OcarmConfig]] = {"tiny": tiny, "small": small, "paper": paper}


def resolve(preset: str, overrides: Sequence[str] = ()) -> OcarmConfig:
    """Return a named setup with `key=value` overrides applied.

    Raises:
        ConfigError: unknown preset or setting (the message lists the known ones), or a bad value.
    """
    return from_preset(PRESETS, preset, overrides)
