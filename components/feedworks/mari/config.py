"""MaRI (arXiv 2602.23105): every setting of a run, typed, with three named setups.

The paper's public record names no settings; README.md says where ours come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from feedworks.configuration import at_least, between, from_preset
from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig

Arch = Literal["mlp", "mmoe", "din", "dcn", "ppnet"]
DTYPES = ("float32", "bfloat16", "float16")
MOST_DROPOUT = 0.99
MOST_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class OutsideConfig:
    """A model that is brought from outside instead of trained.

    Attributes:
        model: `module:callable` or `file.py:callable`; called without arguments it returns the torch module.
        sides: path of the JSON file that names the model's inputs and says whose they are.
    """

    model: str = ""
    sides: str = ""

    def __post_init__(self) -> None:
        if bool(self.model) != bool(self.sides):
            raise ConfigError("outside.model and outside.sides go together: give both or none")
        if self.model and not all(self.model.rpartition(":")[::2]):
            raise ConfigError(f"outside.model={self.model!r}: expected module:callable or file.py:callable")


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The ranker that is trained where none is brought from outside.

    Attributes:
        arch: `mlp`, `mmoe`, `din`, `dcn` (DCNv2) or `ppnet`.
        width: E, of an embedding.
        hidden: widths of the dense layers; in `mmoe` those of a task's tower.
        dropout: probability after each dense layer.
        batch_norm: normalise over the batch between product and activation.
        num_experts: experts of `mmoe`.
        expert_hidden: widths of the layers of an expert of `mmoe`.
        num_cross: cross layers of `dcn`.
        attention: widths of the activation unit of `din`.
        gate_hidden: width inside a gate of `ppnet`; 0 for that of the layer it scales.
        drop_contradictions: train without negatives that are positives elsewhere, see
            `feedworks.mari.data.without_contradictions`; for data whose negatives were drawn at random.
        embedding_l2: pulls the embeddings to 0 in training, see `feedworks.mari.training.train_ranker`.
    """

    arch: Arch = "mlp"
    width: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    batch_norm: bool = False
    num_experts: int = 4
    expert_hidden: tuple[int, ...] = (64,)
    num_cross: int = 3
    attention: tuple[int, ...] = (36,)
    gate_hidden: int = 0
    drop_contradictions: bool = False
    embedding_l2: float = 0.0

    def __post_init__(self) -> None:
        if self.arch not in get_args(Arch):
            raise ConfigError(f"ranker.arch={self.arch!r}: expected one of {', '.join(get_args(Arch))}")
        at_least(1, "ranker", width=self.width, num_experts=self.num_experts, num_cross=self.num_cross)
        at_least(0, "ranker", gate_hidden=self.gate_hidden, embedding_l2=self.embedding_l2)
        between(0, MOST_DROPOUT, "ranker", dropout=self.dropout)
        for name in ("hidden", "expert_hidden", "attention"):
            widths: tuple[int, ...] = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ConfigError(f"ranker.{name}={widths}: expected widths such as 64,32")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How the twin is made.

    Attributes:
        layout: `neat` has one product per side; `keep` one for each block of columns as they lie.
        pad_to: widths of products are filled with zeros to a multiple of this, for tensor cores.
        rows: candidates of a request for which the report counts operations.
        onnx: also write the twin as ONNX, which the proof then holds to the model too; for models all of
            whose operations ONNX has. The role `export` installs what it takes.
    """

    layout: Literal["neat", "keep"] = "neat"
    pad_to: int = 1
    rows: tuple[int, ...] = (1, 100, 1000)
    onnx: bool = False

    def __post_init__(self) -> None:
        if self.layout not in ("neat", "keep"):
            raise ConfigError(f"convert.layout={self.layout!r}: expected neat or keep")
        between(1, 1024, "convert", pad_to=self.pad_to)
        _rising("convert.rows", self.rows)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """When a twin counts as equal to its model.

    Attributes:
        rtol: relative tolerance in float32, against the model and against the model in float64.
        atol: absolute tolerance there.
        dtypes: checked; in the shorter ones the rms of the twin's error may be `low_ratio` times the
            model's own, both against float64 over all samples.
        low_ratio: see `dtypes`.
        requests: candidates of each request of a sample; several requests are also scored in one batch.
        num_samples: samples, each with another seed.
        min_gap: two candidates whose scores differ by more must keep their order.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    dtypes: tuple[str, ...] = DTYPES
    low_ratio: float = 2.0
    requests: tuple[int, ...] = (1, 7, 200)
    num_samples: int = 2
    min_gap: float = 1e-4

    def __post_init__(self) -> None:
        at_least(0, "verify", rtol=self.rtol, atol=self.atol, min_gap=self.min_gap)
        at_least(1, "verify", num_samples=self.num_samples, low_ratio=self.low_ratio)
        if "float32" not in self.dtypes or not set(self.dtypes) <= set(DTYPES):
            raise ConfigError(
                f"verify.dtypes={self.dtypes}: expected float32 and others of {', '.join(DTYPES)}"
            )
        for rows in self.requests:
            between(1, MOST_ROWS, "verify", requests=rows)
        if not self.requests:
            raise ConfigError("verify.requests is empty: expected candidates per request such as 1,7,200")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is timed; timings never decide about equality.

    Attributes:
        rows: candidates of the one request that is scored.
        repeats: calls of every variant that are timed, in turns.
        compiled: also time every variant under torch.compile, which takes a minute or more of compilation.
        threads: of torch; 0 leaves them as they are.
    """

    rows: tuple[int, ...] = (1, 100, 500, 2000, 10_000)
    repeats: int = 50
    compiled: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        at_least(1, "bench", repeats=self.repeats)
        at_least(0, "bench", threads=self.threads)
        _rising("bench.rows", self.rows)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Quality of a trained ranker on the test split.

    Attributes:
        bootstrap: resamples behind an interval.
        batch_size: rows scored at once.
    """

    bootstrap: int = 1000
    batch_size: int = 8192

    def __post_init__(self) -> None:
        at_least(1, "evaluation", bootstrap=self.bootstrap, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a model may be packaged, beside equality, which is always asked for.

    Attributes:
        min_speedup: least ratio of the median times of user-side one-shot inference and of the twin, both
            eager, at the most rows of the benchmark; 0 asks for none.
        min_auc: least AUC of a trained ranker on test; 0 asks for none.
    """

    min_speedup: float = 0.0
    min_auc: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, "gate", min_speedup=self.min_speedup)
        between(0, 1, "gate", min_auc=self.min_auc)


@dataclass(frozen=True, kw_only=True)
class MariConfig:
    """All settings of one run.

    Attributes:
        seed: names every random stream of the run.
        max_candidates: rows that the service takes in one request.
    """

    seed: int = 0
    max_candidates: int = 10_000
    outside: OutsideConfig
    ranker: RankerConfig
    training: TrainConfig
    convert: ConvertConfig
    verify: VerifyConfig
    bench: BenchConfig
    evaluation: EvaluationConfig
    gate: GateConfig

    def __post_init__(self) -> None:
        at_least(0, "", seed=self.seed)
        between(1, MOST_ROWS, "", max_candidates=self.max_candidates)


def tiny() -> MariConfig:
    """Seconds on a laptop: the demo on synthetic candidates, and the tests."""
    return MariConfig(
        outside=OutsideConfig(),
        ranker=RankerConfig(width=8, hidden=(32, 16), expert_hidden=(16,), attention=(16,)),
        training=TrainConfig(epochs=6, batch_size=256, lr=1e-2),
        convert=ConvertConfig(),
        verify=VerifyConfig(requests=(1, 7, 50), num_samples=1),
        bench=BenchConfig(rows=(1, 100, 1000), repeats=10, compiled=False),
        evaluation=EvaluationConfig(bootstrap=200),
        gate=GateConfig(),
    )


def small() -> MariConfig:
    """Minutes on two CPU cores for Frappe, whose negatives were drawn at random."""
    return replace(
        tiny(),
        ranker=RankerConfig(
            arch="ppnet",
            width=32,
            hidden=(300, 300),
            gate_hidden=64,
            dropout=0.3,
            batch_norm=True,
            embedding_l2=0.02,
            drop_contradictions=True,
        ),
        training=TrainConfig(epochs=14, batch_size=2048, lr=1e-3, schedule="cosine", patience=5),
        convert=ConvertConfig(onnx=True),
        verify=VerifyConfig(),
        bench=BenchConfig(),
        evaluation=EvaluationConfig(),
        gate=GateConfig(min_speedup=1.0),
    )


def paper() -> MariConfig:
    """Widths of the first layer as the paper's published ratio asks for; wants a GPU."""
    return replace(
        small(),
        ranker=RankerConfig(width=64, hidden=(1024, 512, 256), dropout=0.2, batch_norm=True),
        convert=ConvertConfig(pad_to=8, onnx=True),
    )


PRESETS: dict[str, Callable[[], MariConfig]] = {"tiny": tiny, "small": small, "paper": paper}


def resolve(preset: str, overrides: Sequence[str] = ()) -> MariConfig:
    """Return a named setup with `key=value` overrides applied.

    Raises:
        ConfigError: unknown preset or setting (the message lists the known ones), or a bad value.
    """
    return from_preset(PRESETS, preset, overrides)


def _rising(name: str, rows: tuple[int, ...]) -> None:
    if not rows or list(rows) != sorted(set(rows)) or rows[0] < 1 or rows[-1] > MOST_ROWS:
        raise ConfigError(f"{name}={rows}: expected rising numbers such as 1,100,1000")
