"""RecoChain (arXiv 2604.25787): every setting, typed, with three named setups.

The paper's public record gives beam, input length and retrieval length only; the other values are ours and
README.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from feedworks.configuration import at_least, between, from_preset, positive
from feedworks.engines import PrepareConfig
from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig

# All of a beam's candidates are ranked at once: wider ones take all memory long before they gain anything.
WIDEST = 10_000
MOST_DROPOUT = 0.99


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """Which item vectors the tokenizer and the search over the history see.

    Attributes:
        sources: any of `given` (column `vector`), `text` (TF-IDF and SVD) and `collaborative` (co-occurrence
            in the training split and SVD); several are concatenated.
        weights: weight of each source in the concatenation, in the order of `sources`.
        text_width: width of the text vectors.
        collaborative_width: width of the collaborative vectors.
        window: largest distance, in events, of two items that count as seen together.
        shift: negatives of the co-occurrence model; larger values keep only surprising pairs.
    """

    sources: tuple[str, ...] = ("given",)
    weights: tuple[float, ...] = (1.0,)
    text_width: int = 96
    collaborative_width: int = 96
    window: int = 5
    shift: float = 10.0

    def __post_init__(self) -> None:
        known = ("given", "text", "collaborative")
        if not self.sources or any(source not in known for source in self.sources):
            raise ConfigError(f"vectors.sources={self.sources!r}: expected some of {', '.join(known)}")
        if len(self.weights) != len(self.sources):
            raise ConfigError(f"vectors.weights={self.weights!r}: expected {len(self.sources)} numbers")
        widths = {"text_width": self.text_width, "collaborative_width": self.collaborative_width}
        at_least(1, "vectors", window=self.window, **widths)
        positive("vectors", weights=min(self.weights), shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Residual k-means.

    Attributes:
        levels: L, codes of one semantic ID.
        codes: C, codes of one level; fewer items than codes lowers it.
        iterations: Lloyd iterations per level.
        sample_size: items that the fit looks at.
        balanced: bound the size of a cluster while fitting.
        normalise: scale residuals to length 1 before each level.
    """

    levels: int = 3
    codes: int = 256
    iterations: int = 25
    sample_size: int = 1_000_000
    balanced: bool = False
    normalise: bool = False

    def __post_init__(self) -> None:
        at_least(1, "tokenizer", levels=self.levels, codes=self.codes)
        at_least(1, "tokenizer", iterations=self.iterations, sample_size=self.sample_size)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder and what its tokens carry.

    Attributes:
        width: D.
        num_layers: blocks of the decoder.
        num_heads: attention heads.
        hidden: inner width of SwiGLU.
        dropout: probability on embeddings, attention and residual branches.
        item_tokens: the last code of a history item also carries the item's id and vector.
        item_scores: the state before an item also scores whole items, by id and vector; the score tells items
            of one semantic ID apart, and is evidence for the ranker.
        similarity_buckets: embedding rows for the cosine between candidate and behaviour.
    """

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 256
    dropout: float = 0.2
    item_tokens: bool = True
    item_scores: bool = True
    similarity_buckets: int = 16

    def __post_init__(self) -> None:
        at_least(
            1,
            "model",
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden=self.hidden,
            similarity_buckets=self.similarity_buckets,
        )
        between(0, MOST_DROPOUT, "model", dropout=self.dropout)
        if self.width < 1 or self.width % (2 * self.num_heads):
            raise ConfigError(
                f"model.width={self.width}: expected a multiple of 2 * num_heads = {2 * self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """How item scores are trained, beside the codes and in both stages.

    Attributes:
        weight: of their cross-entropy beside that of the codes.
        negatives: items that a target competes with, drawn anew for each batch; 0 takes the whole catalogue.
    """

    weight: float = 1.0
    negatives: int = 0

    def __post_init__(self) -> None:
        at_least(0, "items", weight=self.weight, negatives=self.negatives)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Beam search and the search over the history.

    Attributes:
        beam: K, semantic IDs kept.
        retrieved: M, most similar behaviours that a candidate brings along.
        normalise: softmax over the whole codebook, or over the codes that the trie allows.
        bucket_cap: items that one semantic ID expands to, the most popular first.
    """

    beam: int = 20
    retrieved: int = 10
    normalise: Literal["codebook", "children"] = "children"
    bucket_cap: int = 8

    def __post_init__(self) -> None:
        between(1, WIDEST, "search", beam=self.beam, bucket_cap=self.bucket_cap)
        between(0, WIDEST, "search", retrieved=self.retrieved)


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Stage II.

    Attributes:
        loss: `listwise` softmax over the candidates of a row, or `bce` per candidate, which also has to
            learn how likely the row is to hold its target.
        weight: lambda, weight of the ranking loss beside the generation loss.
        negatives: beam members that a positive is ranked against.
        positions: targets per user that candidates are mined for, the latest ones.
        force_positive: also rank targets that the beam missed. They teach that what the generator finds
            improbable is right, which does not hold among the candidates met in serving.
        mine_unseen: stage I does not train on the targets that are mined.
        freeze_backbone: train the rank tokens and the head only.
    """

    loss: Literal["bce", "listwise"] = "listwise"
    weight: float = 1.0
    negatives: int = 15
    positions: int = 1
    force_positive: bool = False
    mine_unseen: bool = True
    freeze_backbone: bool = False

    def __post_init__(self) -> None:
        at_least(1, "rank", negatives=self.negatives, positions=self.positions)
        at_least(0, "rank", weight=self.weight)


@dataclass(frozen=True, kw_only=True)
class SasrecConfig:
    """The SASRec baseline."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.5
    max_history: int = 50

    def __post_init__(self) -> None:
        at_least(1, "sasrec", num_layers=self.num_layers, num_heads=self.num_heads)
        at_least(1, "sasrec", max_history=self.max_history)
        between(0, MOST_DROPOUT, "sasrec", dropout=self.dropout)
        if self.width < 1 or self.width % self.num_heads:
            raise ConfigError(
                f"sasrec.width={self.width}: expected a multiple of num_heads = {self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is reported.

    Attributes:
        cutoffs: k of recall@k, ndcg@k and mrr@k.
        monitor_users: validation users that choose the best epoch.
        sweep_beams: beam widths compared on the validation split; empty for none.
        sweep_retrieved: retrieval lengths compared there.
        sweep_users: users of the sweep.
        bootstrap: resamples behind an interval.
        batch_size: users scored at once.
    """

    cutoffs: tuple[int, ...] = (5, 10)
    monitor_users: int = 4000
    sweep_beams: tuple[int, ...] = ()
    sweep_retrieved: tuple[int, ...] = ()
    sweep_users: int = 4000
    bootstrap: int = 1000
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not self.cutoffs:
            raise ConfigError("evaluation.cutoffs is empty: expected numbers such as 5,10")
        if list(self.cutoffs) != sorted(set(self.cutoffs)):
            raise ConfigError(f"evaluation.cutoffs={self.cutoffs}: expected rising numbers such as 5,10")
        at_least(1, "evaluation", cutoffs=min(self.cutoffs), bootstrap=self.bootstrap)
        at_least(1, "evaluation", batch_size=self.batch_size, monitor_users=self.monitor_users)
        at_least(1, "evaluation", sweep_users=self.sweep_users)
        for beam in self.sweep_beams:
            between(1, WIDEST, "evaluation", sweep_beams=beam)
        for retrieved in self.sweep_retrieved:
            between(0, WIDEST, "evaluation", sweep_retrieved=retrieved)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a model may be packaged: relative gains of the reranked order over the generated one.

    Attributes:
        min_gain: least relative gain of recall at the smallest cutoff.
        max_invalid_rate: largest share of generated semantic IDs that do not exist.
    """

    min_gain: float = 0.0
    max_invalid_rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RecoChainConfig:
    """All settings of one run.

    Attributes:
        seed: names every random stream of the run.
        max_history: n, items that the decoder reads.
        search_history: H, items that the search over the history reads.
        min_events: users with fewer events are left out; at least 3, for train, validation and test.
        dedup_consecutive: collapse repeats of one item in a row.
        user_fraction: share of the users that is kept, for quick runs.
        exclude_seen: never rank items of the user's own history, under any method; right where nobody takes
            an item twice (reviews), wrong where people come back (clicks).
        prepare: where the pass over the events runs.
    """

    seed: int = 0
    max_history: int = 32
    search_history: int = 1000
    min_events: int = 3
    dedup_consecutive: bool = True
    user_fraction: float = 1.0
    exclude_seen: bool = False
    prepare: PrepareConfig
    vectors: VectorConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    items: ItemConfig
    search: SearchConfig
    generator: TrainConfig
    rank: RankConfig
    joint: TrainConfig
    sasrec: SasrecConfig
    sasrec_training: TrainConfig
    evaluation: EvaluationConfig
    gate: GateConfig

    def __post_init__(self) -> None:
        at_least(1, "", max_history=self.max_history, search_history=self.search_history)
        at_least(0, "", seed=self.seed)
        if self.min_events < 3:
            raise ConfigError(f"min_events={self.min_events}: expected at least 3 (train, validation, test)")
        if not 0 < self.user_fraction <= 1:
            raise ConfigError(f"user_fraction={self.user_fraction}: expected a share in (0, 1]")


# What the larger setups share: AdamW with decay, a cosine after the warm-up, clipped gradients.
DECAYING = TrainConfig(epochs=1, batch_size=1, weight_decay=0.05, schedule="cosine", grad_clip=1.0)


def tiny() -> RecoChainConfig:
    """Seconds on a laptop: the demo on synthetic events, and the tests."""
    return RecoChainConfig(
        max_history=12,
        prepare=PrepareConfig(),
        vectors=VectorConfig(sources=("given",), weights=(1.0,)),
        tokenizer=TokenizerConfig(levels=3, codes=16, iterations=10),
        model=ModelConfig(width=64, num_layers=2, num_heads=2, hidden=128, dropout=0.1),
        items=ItemConfig(),
        search=SearchConfig(beam=20, retrieved=5),
        generator=TrainConfig(epochs=6, batch_size=64, lr=3e-3, warmup_steps=50, schedule="cosine"),
        rank=RankConfig(negatives=15),
        joint=TrainConfig(epochs=3, batch_size=64, lr=1e-3, warmup_steps=20, schedule="cosine"),
        sasrec=SasrecConfig(width=32, dropout=0.2),
        sasrec_training=TrainConfig(epochs=4, batch_size=64, lr=3e-3),
        evaluation=EvaluationConfig(
            sweep_beams=(10, 20, 40), sweep_retrieved=(0, 5), sweep_users=300, monitor_users=400
        ),
        gate=GateConfig(),
    )


def small() -> RecoChainConfig:
    """Under an hour on two CPU cores for the Amazon 5-core sets."""
    return RecoChainConfig(
        max_history=20,
        dedup_consecutive=False,
        exclude_seen=True,
        prepare=PrepareConfig(),
        vectors=VectorConfig(sources=("text", "collaborative"), weights=(1.0, 1.0)),
        tokenizer=TokenizerConfig(),
        model=ModelConfig(),
        items=ItemConfig(),
        search=SearchConfig(),
        generator=replace(DECAYING, epochs=9, batch_size=128, lr=2e-3, warmup_steps=300, eval_every=3),
        rank=RankConfig(negatives=19, weight=0.3),
        joint=replace(DECAYING, epochs=3, batch_size=128, lr=1e-3, warmup_steps=50),
        sasrec=SasrecConfig(),
        sasrec_training=TrainConfig(epochs=40, batch_size=128, lr=4e-3, eval_every=5),
        evaluation=EvaluationConfig(
            sweep_beams=(10, 20, 40), sweep_retrieved=(0, 5, 10, 20), sweep_users=1000
        ),
        gate=GateConfig(),
    )


def paper() -> RecoChainConfig:
    """The published beam 20, input 32 and retrieval 10 with 8,192 codes a level; wants a GPU."""
    large = replace(DECAYING, precision="bf16-mixed")
    return RecoChainConfig(
        max_history=32,
        prepare=PrepareConfig(),
        vectors=VectorConfig(sources=("given",), weights=(1.0,)),
        tokenizer=TokenizerConfig(codes=8192),
        model=ModelConfig(width=512, num_layers=8, num_heads=8, hidden=1365, dropout=0.1),
        items=ItemConfig(negatives=16_384),
        search=SearchConfig(),
        generator=replace(large, epochs=10, batch_size=512, lr=1e-3, warmup_steps=1000),
        rank=RankConfig(positions=2),
        joint=replace(large, epochs=2, batch_size=256, lr=3e-4, warmup_steps=500),
        sasrec=SasrecConfig(width=256),
        sasrec_training=TrainConfig(epochs=20, batch_size=256, lr=1e-3, patience=3),
        evaluation=EvaluationConfig(sweep_beams=(10, 20, 40), sweep_retrieved=(0, 5, 10, 20)),
        gate=GateConfig(),
    )


PRESETS: dict[str, Callable[[], RecoChainConfig]] = {"tiny": tiny, "small": small, "paper": paper}


def resolve(preset: str, overrides: Sequence[str] = ()) -> RecoChainConfig:
    """Return a named setup with `key=value` overrides applied.

    Raises:
        ConfigError: unknown preset or setting (the message lists the known ones), or a bad value.
    """
    return from_preset(PRESETS, preset, overrides)
