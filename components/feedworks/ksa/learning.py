"""KSA (arXiv 2604.24432): what summaries are worth, learned by small models on two CPU cores.

    books       the same decoder with each attention, same rows and steps, loss on text kept apart
    conversion  the full-attention model of `books`: distilled, then annealed, in a fifth of its steps

`python -m feedworks.ksa.bench learn`. Every run is a function of its seed and can be killed and started
again. Choices are made on the validation rows; `test` is for reading at the end.
Shape legend: B rows, T tokens, R rows of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from feedworks.datasets.folder import open_data
from feedworks.errors import ConfigError
from feedworks.ksa import stages
from feedworks.ksa.arms import ARMS, FULL, OURS, Arm, architecture, sizes
from feedworks.ksa.checkpoint import as_qwen3, from_qwen3, load, save
from feedworks.ksa.corpus import SMALLEST_VOCABULARY, TokenFile, fit_tokenizer, tokenise
from feedworks.ksa.data import Later, Windows
from feedworks.ksa.heldout import heldout_loss, rows_of
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.settings import AnnealConfig, DistilConfig, ModelConfig, PretrainConfig, StageConfig
from feedworks.progress import say
from feedworks.storage import read_json, write_json
from feedworks.training.loop import FitResult
from feedworks.training.seed import mix, seed_everything
from feedworks.training.settings import TrainConfig, seeded

Row = dict[str, Any]
_SOURCE = "source.json"
StageT = TypeVar("StageT", bound=StageConfig)
DISTIL_SHARE, ANNEAL_SHARE = 0.05, 0.15  # of the steps that made the full-attention model
TRAINING = TrainConfig(
    epochs=1,
    batch_size=1,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    warmup_steps=50,
    schedule="cosine",
    min_lr_ratio=0.1,
    grad_clip=1.0,
    accelerator="cpu",
)


class BooksPlan(NamedTuple):
    """How the books are learned.

    Attributes:
        model: sizes.
        stage: steps and optimiser; every attention reads all text raw in the first steps, as
            `full_share` (not 0) says. From random weights a small model with summaries learns more slowly.
        vocab_size: of the tokenizer; the least there is makes a token of every byte.
        max_rows: rows of validation and of test, each.
        distil_lr: peak rate of the conversion's first stage, which trains the summaries alone.
        anneal_lr: of its second.
    """

    model: ModelConfig
    stage: PretrainConfig
    vocab_size: int = SMALLEST_VOCABULARY
    max_rows: int = 128
    distil_lr: float = 2e-3
    anneal_lr: float = 5e-4


def books_plan(num_steps: int = 1000) -> BooksPlan:
    """Bytes; four layers whose windows hold 32 of them, none that reads all; rows of 512.

    With three heads of 64 the model has learned little of far text when the windows close, and the summaries
    have nothing to carry on; with six of 32 it has.
    """
    model = ModelConfig(
        width=192,
        num_layers=4,
        num_heads=6,
        num_kv_heads=6,
        head_width=32,
        hidden=512,
        window=3,
        full_every=0,
        max_length=512,
    )
    training = replace(TRAINING, batch_size=6, lr=2e-3, precision="bf16-mixed")
    stage = PretrainConfig(seq_len=512, steps_per_epoch=num_steps, training=training, full_share=0.5)
    return BooksPlan(model, stage)


def books(
    data: str | Path,
    out_dir: Path,
    plan: BooksPlan,
    *,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = (0,),
) -> Iterator[Row]:
    """Train each attention on the same rows of text and yield its held-out losses in nats per token.

    Args:
        data: raw files of a known data set, or a text data folder.
        out_dir: keeps the tokens, the state of the runs and the models, `<arm>-<seed>`.
        plan: sizes and steps.
        arms: attentions; where `full` comes first the others tell their loss as a share of its.
        seeds: of weights and rows, one run each.

    Raises:
        ConfigError: `out_dir` holds another run.
        DataError: there is no text in `data`, or less than a row.
    """
    text = _Text(data, out_dir, plan)
    for seed in seeds:
        full: Row = {}
        for arm in arms:
            say(f"books: {arm}, seed {seed}")
            model, result = _from_scratch(arm, text, out_dir, plan, seed)
            row = row_of("books", arm, seed, result) | text.losses(model)
            full = row if arm == FULL else full
            yield row | _shares(row, full)


def conversion(
    data: str | Path, out_dir: Path, plan: BooksPlan, *, seeds: Sequence[int] = (0,)
) -> Iterator[Row]:
    """Convert the full-attention model of `books` and yield its losses before, between and after the stages.

    The steps of both stages are a fifth of those that made the model.

    Args:
        data: see `books`.
        out_dir: that of `books`; where it has no full-attention model yet, one is trained.
        plan: sizes and steps.
        seeds: of the full-attention models.

    Raises:
        DataError: see `books`.
    """
    text = _Text(data, out_dir, plan)
    for seed in seeds:
        base, result = _from_scratch(FULL, text, out_dir, plan, seed)
        full = row_of("conversion", FULL, seed, result) | text.losses(base)
        yield full
        save(as_qwen3(base), out_dir / f"base-{seed}")
        model = from_qwen3(out_dir / f"base-{seed}", **sizes(OURS, plan.model, plan.model.num_layers))
        untrained = row_of("conversion", "untrained", seed, None) | text.losses(model)
        yield untrained | _shares(untrained, full)
        for stage in _conversion_stages(plan, seed):
            name = "distil" if isinstance(stage, DistilConfig) else "anneal"
            rows = Windows(text.training, stage.seq_len, stage.training.seed)
            state_dir = out_dir / "state" / f"{name}-{seed}"
            if isinstance(stage, DistilConfig):
                result = stages.distil(model, rows, stage, state_dir).result
            else:
                result = stages.anneal(model, rows, stage, state_dir).result
            row = row_of("conversion", name, seed, result) | text.losses(model)
            row["share_of_steps"] = result.num_steps / plan.stage.num_steps
            yield row | _shares(row, full)
        save(model, out_dir / f"converted-{seed}")


class _Text:
    """The tokens of a run: training, and rows (R, T) of validation and test."""

    def __init__(self, data: str | Path, out_dir: Path, plan: BooksPlan) -> None:
        tokens, tokenizer = out_dir / "tokens", out_dir / "tokenizer"
        facts = {"data": str(Path(data).resolve()), "vocab_size": plan.vocab_size}
        source = out_dir / _SOURCE
        found = read_json(source) if source.is_file() else {"data": "other data"}
        if tokens.is_dir() and found != facts:
            raise ConfigError(
                f"{out_dir} holds tokens of {found['data']}, not of {data}; choose another folder"
            )
        if not tokens.is_dir():
            write_json(source, facts)
            folder = open_data(data, out_dir / "data", kind="text")
            fit_tokenizer(folder, tokenizer, vocab_size=plan.vocab_size)
            tokenise(folder, tokenizer, tokens)
        file = TokenFile(tokens / "train")
        self.training, self.vocab_size = file.tokens, file.vocab_size
        self._bfloat16 = plan.stage.training.precision != "32-true"
        self._rows: dict[str, Tensor] = {
            split: rows_of(TokenFile(tokens / split).tokens, plan.stage.seq_len, plan.max_rows)
            for split in ("valid", "test")
        }

    def losses(self, model: Qwen3KsaForCausalLM) -> Row:
        """Measure a model in the precision that it was trained in."""
        model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            return {
                f"{split}_loss": heldout_loss(model, rows_RT).loss for split, rows_RT in self._rows.items()
            }


def _from_scratch(
    arm: Arm, text: _Text, out_dir: Path, plan: BooksPlan, seed: int
) -> tuple[Qwen3KsaForCausalLM, FitResult]:
    """Train as `stages.pretrain` would; the steps with full attention are taken once for all arms."""
    first, rest = of_seed(plan.stage, seed).parts()
    rows = Windows(text.training, first.seq_len, first.training.seed)
    base = fresh(FULL, plan.model, seed, vocab_size=text.vocab_size)
    start = stages.pretrain(base, rows, first, out_dir / "state" / f"start-{seed}").result
    save(as_qwen3(base), out_dir / f"start-{seed}")
    model = from_qwen3(out_dir / f"start-{seed}", **sizes(arm, plan.model, plan.model.num_layers)).train()
    later, state_dir = Later(rows, first.num_steps), out_dir / "state" / f"{arm}-{seed}"
    result = stages.pretrain(model, later, rest, state_dir).result
    save(model, out_dir / f"{arm}-{seed}")
    seconds = start.seconds + result.seconds
    return load(out_dir / f"{arm}-{seed}"), result._replace(num_steps=plan.stage.num_steps, seconds=seconds)


def _conversion_stages(plan: BooksPlan, seed: int) -> tuple[DistilConfig, AnnealConfig]:
    num_steps, length = plan.stage.num_steps, plan.stage.seq_len
    distil, anneal = max(1, int(num_steps * DISTIL_SHARE)), max(1, int(num_steps * ANNEAL_SHARE))
    # Other rows than those at the start of the base's training, in another order.
    training = seeded(plan.stage.training, mix(seed, "conversion") % 2**31)
    return (
        DistilConfig(
            seq_len=length,
            steps_per_epoch=distil,
            training=replace(training, lr=plan.distil_lr, warmup_steps=distil // 10),
        ),
        AnnealConfig(
            seq_len=length,
            steps_per_epoch=anneal,
            training=replace(training, lr=plan.anneal_lr, warmup_steps=anneal // 10),
        ),
    )


def fresh(arm: Arm, model: ModelConfig, seed: int, *, vocab_size: int) -> Qwen3KsaForCausalLM:
    """Return a model with the random weights of a seed."""
    seed_everything(seed)
    return Qwen3KsaForCausalLM(architecture(arm, model, vocab_size=vocab_size))


def of_seed(stage: StageT, seed: int) -> StageT:
    """Return the stage with a seed of its own."""
    return replace(stage, training=seeded(stage.training, seed))


def row_of(what: str, arm: str, seed: int, result: FitResult | None) -> Row:
    """Return what every row of results begins with; no steps of a model that was not trained."""
    steps, seconds = (result.num_steps, round(result.seconds, 1)) if result else (0, 0.0)
    return {"what": what, "arm": arm, "seed": seed, "steps": steps, "seconds": seconds}


def _shares(row: Row, full: Row) -> Row:
    """Return a row's losses as multiples of full attention's."""
    names = [name for name in full if name.endswith("_loss")]
    return {f"{name}_of_full": row[name] / full[name] for name in names}
