"""KSA (arXiv 2604.24432): the steps of the pipeline. Paths in, paths out.

Each step reads the folders of earlier steps and writes one folder, whole or not at all. Training keeps its
state beside the result in `<out>.state` until it is done, so a killed step goes on where it was. A model is
a folder in Hugging Face's layout with `training.json`, the histories of all stages that made it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from feedworks.ksa import stages
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.arms import FULL, NAMES, OURS, Arm, architecture, arm_of, sizes
from feedworks.ksa.checkpoint import CONFIG, as_qwen3, check_qwen3, from_qwen3, load, save
from feedworks.ksa.config import KsaConfig
from feedworks.ksa.corpus import TokenFile, copy_tokenizer, fit_tokenizer, load_tokenizer, tokenise
from feedworks.ksa.data import Source
from feedworks.ksa.evaluation import evaluate_arms, for_use, shortcomings
from feedworks.ksa.heldout import LOSS, evaluation, rows_of
from feedworks.ksa.mixing import training_source
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.needles import Haystack, read_needles, write_needles
from feedworks.ksa.needles import make_needles as hide
from feedworks.ksa.packaging import write_package
from feedworks.ksa.report import write_report
from feedworks.ksa.settings import StageConfig
from feedworks.progress import say
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.loop import FitResult
from feedworks.training.processes import is_first_process
from feedworks.training.seed import seed_everything
from feedworks.training.settings import TrainConfig, seeded
from feedworks.training.state import state_of

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

TOKENIZER, TOKENS = "tokenizer", "tokens"  # in the folder of a corpus
MEASURED, TRAINED_ON = "test.parquet", "train.parquet"  # in the folder of needles
TRAINING = "training.json"
FROM_SCRATCH = "from scratch"
QUESTIONS = 8  # asked in a prompt that is trained on, as far as it holds them
TRAINING_SEED = 1 << 16  # added for needles that are trained on

StageT = TypeVar("StageT", bound=StageConfig)


class Prepared(NamedTuple):
    """What was tokenised."""

    num_documents: int
    num_tokens: int
    vocab_size: int


class Hidden(NamedTuple):
    """Prompts that were written."""

    num_measured: int
    num_trained_on: int


class Trained(NamedTuple):
    """The end of a training run: its optimiser steps and, in nats, the loss on validation.

    A model that was only copied has none.
    """

    num_steps: int
    valid_loss: float | None


class Evaluation(NamedTuple):
    """The flat metrics."""

    metrics: dict[str, float]


class Packaged(NamedTuple):
    """The name under which the model is served."""

    tag: str


def prepare_corpus(data_dir: Path, out_dir: Path, cfg: KsaConfig) -> Prepared:
    """Texts to token files; the tokenizer is fitted on the training split, or that of a folder is taken.

    Raises:
        DataError: a text is missing, or shorter than a row of the evaluation.
        ModelError: the folder has no tokenizer that can be used.
    """
    given = cfg.base.folder or cfg.corpus.tokenizer
    with atomic_folder(out_dir) as folder:
        tokenizer = folder / TOKENIZER
        if given:
            copy_tokenizer(Path(given), tokenizer)
        else:
            fit_tokenizer(data_dir, tokenizer, vocab_size=cfg.corpus.vocab_size)
        size = tokenise(data_dir, tokenizer, folder / TOKENS)
        vocab_size = TokenFile(folder / TOKENS / "train").vocab_size
        measured = {"seq_len": cfg.evaluation.seq_len, "decode_tokens": cfg.evaluation.decode_tokens}
        for split in ("valid", "test"):  # too short a text is told before the training
            for name, length in measured.items():
                rows_of(TokenFile(folder / TOKENS / split).tokens, length, 1, setting=f"evaluation.{name}")
    return Prepared(sum(size.num_documents.values()), sum(size.num_tokens.values()), vocab_size)


def make_needles(corpus: Path, out_dir: Path, cfg: KsaConfig) -> Hidden:
    """Prompts to measure with, in test text, and prompts to train on, in training text."""
    tokenizer, needles = load_tokenizer(corpus / TOKENIZER), cfg.needles
    haystack = Haystack(tokenizer, _texts(corpus, "test"))
    measured = hide(
        haystack,
        tasks=needles.tasks,
        lengths=needles.lengths,
        depths=needles.depths,
        per_cell=needles.per_cell,
        seed=cfg.seed,
    )
    lengths = [length for length in needles.lengths if length <= cfg.pretrain.seq_len]
    per_cell = -(-needles.train_rows // max(1, len(needles.tasks) * len(lengths)))
    trained_on = hide(
        Haystack(tokenizer, _texts(corpus, "train")),
        tasks=needles.tasks,
        lengths=lengths,
        depths=None,
        per_cell=per_cell,
        seed=cfg.seed + TRAINING_SEED,
        questions=QUESTIONS,
    )
    with atomic_folder(out_dir) as folder:
        write_needles(measured, folder / MEASURED)
        write_needles(trained_on, folder / TRAINED_ON)
    return Hidden(len(measured), len(trained_on))


def pretrain(corpus: Path, needles: Path, out_dir: Path, cfg: KsaConfig) -> Trained:
    """Train the model from scratch, or bring what a conversion starts from.

    That is the Qwen3 checkpoint of `base.folder`, copied, or a full-attention model that is trained here and
    written as one.

    Raises:
        ModelError: `base.folder` holds no checkpoint, or training broke down.
    """
    if cfg.mode == "pretrain":
        return _from_scratch(OURS, corpus, needles, out_dir, cfg)
    if not cfg.base.folder:
        return _from_scratch(FULL, corpus, needles, out_dir, cfg)
    given = Path(cfg.base.folder)
    check_qwen3(given)
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            for path in (*given.glob("*.json"), *given.glob("*.safetensors")):
                shutil.copyfile(path, folder / path.name)
            write_json(folder / TRAINING, {})
    return Trained(0, None)


def train_baseline(corpus: Path, needles: Path, out_dir: Path, cfg: KsaConfig) -> Trained:
    """Train the first of the baselines like `pretrain` and `extend`, on the same batches.

    Without any the folder holds no model: kfp's local runner cannot collect what a loop without turns made.

    Raises:
        ModelError: training broke down.
    """
    if not cfg.baselines:
        if is_first_process():
            with atomic_folder(out_dir) as folder:
                write_json(folder / TRAINING, {})
        return Trained(0, None)
    return _from_scratch(cfg.baselines[0], corpus, needles, out_dir, cfg, to_the_end=True)


def distil(corpus: Path, needles: Path, base: Path, out_dir: Path, cfg: KsaConfig) -> Trained:
    """Stage 1 of a conversion: the base gets summaries, which learn to do what full attention did.

    A model from scratch is passed on as it is; so the pipeline is the same for both.

    Raises:
        ConfigError: the base and the settings do not fit.
        ModelError: the base cannot be read, or training broke down.
    """
    if cfg.mode == "pretrain":
        return _passed_on(base, out_dir)
    seed_everything(cfg.seed)
    changed = sizes(OURS, cfg.model, check_qwen3(base)) | {"max_position_embeddings": cfg.model.max_length}
    model = from_qwen3(base, init=cfg.base.init, dtype=_weights(cfg.distil.training), **changed)
    stage, rows = _seeded(cfg.distil, cfg), _Rows(corpus, needles, cfg)
    found = stages.distil(model, rows.source(stage, model), stage, state_of(out_dir), rows.evaluate(stage))
    return _finish(out_dir, model, {"distil": found.result}, before=base)


def anneal(corpus: Path, needles: Path, distilled: Path, out_dir: Path, cfg: KsaConfig) -> Trained:
    """Stage 2: all weights train while the summaries' own projections fade away.

    A model from scratch is passed on as it is.

    Raises:
        ModelError: the model cannot be read, or training broke down.
    """
    if cfg.mode == "pretrain":
        return _passed_on(distilled, out_dir)
    model = load(distilled, dtype=_weights(cfg.anneal.training))
    stage, rows = _seeded(cfg.anneal, cfg), _Rows(corpus, needles, cfg)
    found = stages.anneal(model, rows.source(stage, model), stage, state_of(out_dir), rows.evaluate(stage))
    return _finish(out_dir, model, {"anneal": found.result}, before=distilled)


def extend(corpus: Path, needles: Path, trained: Path, out_dir: Path, cfg: KsaConfig) -> Trained:
    """Stage 3: longer rows, one length after the other; without lengths the model is passed on as it is.

    Raises:
        ModelError: the model cannot be read, or training broke down.
    """
    if not cfg.extend.lengths:
        return _passed_on(trained, out_dir)
    model, rows = load(trained, dtype=_weights(cfg.extend.training)), _Rows(corpus, needles, cfg)
    return _finish(out_dir, model, _extended(model, rows, cfg, cfg.trained_length, out_dir), before=trained)


def evaluate(
    corpus: Path,
    needles: Path,
    trained: Path,
    first: Path,
    baselines: Sequence[Path],
    out_dir: Path,
    cfg: KsaConfig,
) -> Evaluation:
    """Measure the model beside its baselines; writes metrics.json and report.html.

    Args:
        corpus: folder of the corpus.
        needles: folder of the needles.
        trained: the model.
        first: what it was made from; of a conversion the base, which stands for full attention.
        baselines: other attentions; folders without a model are left out.
        out_dir: where.
        cfg: of the run.

    Raises:
        DataError: a held-out split is too short.
        ModelError: a model cannot be read, or gives logits that are not finite.
    """
    others = [folder for folder in baselines if (folder / CONFIG).is_file()]
    others = [first, *others] if cfg.mode == "convert" else others
    folders = {OURS: trained} | {_arm(folder): folder for folder in others}
    models: dict[str, Callable[[], Qwen3KsaForCausalLM]] = {
        arm: partial(for_use, folder, cfg.package.dtype) for arm, folder in folders.items()
    }
    prompts = read_needles(needles / MEASURED)
    found = evaluate_arms(models, corpus / TOKENIZER, corpus / TOKENS, prompts, cfg)
    histories = {
        f"{NAMES[arm]}, {stage}": history
        for arm, folder in folders.items()
        for stage, history in sorted(read_json(folder / TRAINING).items(), key=_order)
    }
    made = "converted from full attention" if cfg.mode == "convert" else "trained from scratch"
    with atomic_folder(out_dir) as folder:
        write_json(folder / "metrics.json", found.metrics)
        write_report(folder / "report.html", found, histories, cfg, made)
    return Evaluation(found.metrics)


def passes_gate(evaluation: Path, cfg: KsaConfig) -> bool:
    """Whether the model may be packaged; says why not."""
    found = shortcomings(evaluation, cfg)
    for text in found:
        say(f"gate: {text}")
    return not found


def package(corpus: Path, trained: Path, evaluation: Path, out_dir: Path, cfg: KsaConfig) -> Packaged:
    """One folder with all that serving needs, and a model card.

    Raises:
        ModelError: the model has fewer tokens than the tokenizer.
    """
    metrics = read_json(evaluation / "metrics.json")
    with atomic_folder(out_dir) as folder:
        return Packaged(write_package(folder, trained, corpus / TOKENIZER, cfg, metrics))


class _Rows:
    """What the stages of a run train and are measured on."""

    def __init__(self, corpus: Path, needles: Path, cfg: KsaConfig) -> None:
        self._tokens, self._cfg = corpus / TOKENS, cfg
        self._needles = read_needles(needles / TRAINED_ON)

    def source(self, stage: StageConfig, model: Qwen3KsaForCausalLM) -> Source:
        file = TokenFile(self._tokens / "train")
        return training_source(file, self._needles, stage, self._cfg, model.config.chunk)

    def evaluate(self, stage: StageConfig) -> Callable[[Any, int], dict[str, float]]:
        file, cfg = TokenFile(self._tokens / "valid"), self._cfg.evaluation
        length = min(stage.seq_len, len(file.tokens))
        rows_RT = rows_of(file.tokens, length, cfg.max_rows)
        bfloat16 = stage.training.precision != "32-true"
        return evaluation(rows_RT, batch_size=cfg.batch_size, bfloat16=bfloat16)


def _from_scratch(
    arm: Arm, corpus: Path, needles: Path, out_dir: Path, cfg: KsaConfig, *, to_the_end: bool = False
) -> Trained:
    """Pretrain; `to_the_end` extends, too, as the pipeline does with the model in a step of its own."""
    seed_everything(cfg.seed)
    file = TokenFile(corpus / TOKENS / "train")
    ids = {"eos_token_id": file.end_id, "vocab_size": file.vocab_size}
    model = Qwen3KsaForCausalLM(architecture(arm, cfg.model, **ids))
    stage, rows = _seeded(cfg.pretrain, cfg), _Rows(corpus, needles, cfg)
    state = state_of(out_dir) / "from-scratch"
    found = stages.pretrain(model, rows.source(stage, model), stage, state, rows.evaluate(stage))
    results = {FROM_SCRATCH: found.result}
    if to_the_end:
        results |= _extended(model.train(), rows, cfg, cfg.pretrain.seq_len, out_dir)
    made = model if arm != FULL or cfg.mode == "pretrain" else as_qwen3(model)
    return _finish(out_dir, made, results)


def _extended(
    model: Qwen3KsaForCausalLM, rows: _Rows, cfg: KsaConfig, trained_length: int, out_dir: Path
) -> dict[str, FitResult]:
    found = stages.extend(
        model,
        lambda stage: rows.source(stage, model),
        replace(cfg.extend, training=seeded(cfg.extend.training, cfg.seed)),
        state_of(out_dir) / "extend",
        trained_length=trained_length,
        evaluate_of=rows.evaluate,
    )
    names = (f"extend to {length}" for length in cfg.extend.lengths)
    return {name: each.result for name, each in zip(names, found, strict=True)}


def _finish(
    out_dir: Path,
    model: Qwen3KsaForCausalLM | Qwen3ForCausalLM,
    results: Mapping[str, FitResult],
    before: Path | None = None,
) -> Trained:
    """Write the model with the histories of its stages, and those of the folder `before`."""
    histories = read_json(before / TRAINING) if before else {}
    histories |= {name: result.history for name, result in results.items()}
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            save(model, folder)
            write_json(folder / TRAINING, histories)
        shutil.rmtree(state_of(out_dir), ignore_errors=True)
    *_, last = results.values()
    loss = last.history[last.best_epoch][LOSS] if last.best_epoch >= 0 else None
    return Trained(sum(result.num_steps for result in results.values()), loss)


def _order(history: tuple[str, Any]) -> tuple[int, int]:
    """Place a stage in the order of training: files keep their names in that of the alphabet."""
    name, _, length = history[0].partition(" to ")
    return [FROM_SCRATCH, "distil", "anneal", "extend"].index(name), int(length or 0)


def _weights(training: TrainConfig) -> torch.dtype | None:
    """Say in which type weights are trained: a checkpoint's bfloat16 would round small steps away."""
    return None if training.precision == "bf16-true" else torch.float32


def _passed_on(source: Path, out_dir: Path) -> Trained:
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    return Trained(0, None)


def _seeded(stage: StageT, cfg: KsaConfig) -> StageT:
    return replace(stage, training=seeded(stage.training, cfg.seed))


def _arm(folder: Path) -> Arm:
    settings = read_json(folder / CONFIG)
    if settings["model_type"] != Qwen3KsaConfig.model_type:
        return FULL
    return arm_of(Qwen3KsaConfig.from_dict(settings))


def _texts(corpus: Path, split: str) -> Iterator[str]:
    tokenizer, file = load_tokenizer(corpus / TOKENIZER), TokenFile(corpus / TOKENS / split)
    for place in range(file.num_documents):
        yield tokenizer.decode(file.document(place)[:-1].tolist())
