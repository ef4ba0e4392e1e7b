"""KSA (arXiv 2604.24432): training from scratch, and the three stages that convert a full-attention model.

    pretrain    next-token loss on all weights
    distil      the summary parameters alone learn what the same model does with full attention
    anneal      all weights train while lambda takes the summary rows' own projections away
    extend      all weights train on longer and longer rows, with a raised base of the rotary positions

Each goes through `feedworks.training.loop.fit`: a run that is killed and started again with the same
arguments ends with the same bits. Shape legend: B rows, T tokens, R rows of a split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from feedworks.errors import ConfigError
from feedworks.ksa.data import Later, Packed, Source, TextBatch, Windows, epochs
from feedworks.ksa.heldout import MONITOR
from feedworks.ksa.losses import attention_terms, num_targets, token_terms
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.settings import AnnealConfig, DistilConfig, ExtendConfig, PretrainConfig, StageConfig
from feedworks.storage import read_json, write_json
from feedworks.training.freezing import only_trained
from feedworks.training.loop import FitResult, fit
from feedworks.training.processes import is_first_process

# Of a model's configuration, what its weights' shapes do not show.
_DECIDING = (
    "windows",
    "chunk",
    "summaries",
    "summary_bypass",
    "summary_weight",
    "raw_window",
    "rope_parameters",
)

Loss = Callable[[Any, TextBatch], dict[str, Tensor]]
Evaluate = Callable[[Any, int], dict[str, float]]


class Trained(NamedTuple):
    """A model in eval mode, with its best weights if it was evaluated, and how it came about."""

    model: Qwen3KsaForCausalLM
    result: FitResult


def text_source(file: Any, cfg: StageConfig, chunk: int) -> Source:
    """Return the training rows of a text as a stage asks for them.

    Args:
        file: `tokens` (N,) and `starts`, see `feedworks.ksa.corpus.TokenFile`.
        cfg: seq_len, pack, and the seed.
        chunk: k of the model.

    Raises:
        ConfigError: packed rows are not of whole chunks.
        DataError: the text does not fill a row.
    """
    if cfg.pack:
        return Packed(file.tokens, file.starts, cfg.seq_len, chunk, cfg.training.seed)
    return Windows(file.tokens, cfg.seq_len, cfg.training.seed)


def pretrain(
    model: Qwen3KsaForCausalLM,
    source: Source,
    cfg: StageConfig,
    state_dir: Path,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Train all weights on the next token, in place.

    Args:
        model: any windows, with or without summaries.
        source: training rows.
        cfg: steps, optimiser, checkpointing; of a `PretrainConfig` also how long all text is read raw, at
            first and without evaluation.
        state_dir: of the run, for exact resume.
        evaluate: (model, epoch) -> metrics, `feedworks.ksa.heldout.MONITOR` among them, which chooses the
            best epoch; without it the last weights stay. See `feedworks.ksa.heldout.evaluation`.

    Raises:
        ConfigError: `state_dir` holds another run.
        ModelError: training broke down.
    """
    if not (isinstance(cfg, PretrainConfig) and cfg.full_share):
        return _run(model, source, cfg, state_dir, _next_token, evaluate)
    first, rest = cfg.parts()
    full = _run(model, source, first, state_dir / "full", partial(_next_token, full=True), None).result
    model.train()
    model.copy_text_to_summaries()
    found = _run(model, Later(source, first.num_steps), rest, state_dir / "rest", _next_token, evaluate)
    return Trained(model, _joined(full, found.result))


def distil(
    model: Qwen3KsaForCausalLM,
    source: Source,
    cfg: DistilConfig,
    state_dir: Path,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Stage 1: train the summary embedding and projections against the model's own full attention.

    The teacher is the same network, whose text rows read all text raw; its weights are frozen, so it stays
    what it was. Where every window is unbounded the student is the teacher and its loss starts at lm alone.

    Args:
        model: converted, see `feedworks.ksa.checkpoint.from_qwen3`.
        source: see `pretrain`.
        cfg: weights of the terms, steps, optimiser, checkpointing.
        state_dir: see `pretrain`.
        evaluate: see `pretrain`.

    Raises:
        ConfigError: the model has no summaries; or see `pretrain`.
        ModelError: training broke down.
    """

    def loss(module: Any, batch: TextBatch) -> dict[str, Tensor]:
        return _distilled(module, batch, cfg)

    names = {name for name, _ in model.summary_parameters()}
    with only_trained(model, names):
        return _run(model, source, cfg, state_dir, loss, evaluate)


def summary_weight(cfg: AnnealConfig, step: int) -> float:
    """Return lambda at a step: 1 until `start`, 0 from `end`, a line between; shares of all steps."""
    begin, end = cfg.start * cfg.num_steps, cfg.end * cfg.num_steps
    return min(1.0, max(0.0, (end - step) / (end - begin)))


def anneal(
    model: Qwen3KsaForCausalLM,
    source: Source,
    cfg: AnnealConfig,
    state_dir: Path,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Stage 2: train all weights while lambda falls to 0, then drop the summary rows' own projections.

    The step comes with the batch (`TextBatch.step`), so lambda is a function of the batch: the same in all
    processes, in accumulated parts and after a resume. `evaluate` always sees lambda 0, the model that is
    handed over.

    Args:
        model: with summary projections.
        source: see `pretrain`.
        cfg: when lambda falls; steps, optimiser, checkpointing.
        state_dir: see `pretrain`.
        evaluate: see `pretrain`.

    Raises:
        ConfigError: the model has no summary projections; or see `pretrain`.
        ModelError: training broke down.
    """
    if not (model.config.summaries and model.config.summary_projections):
        raise ConfigError("anneal: the model's summaries have no projections of their own; distil it first")

    def loss(module: Any, batch: TextBatch) -> dict[str, Tensor]:
        weight = summary_weight(cfg, batch.step)
        module.set_summary_weight(weight)
        terms = _next_token(module, batch)
        return terms | {"lambda": terms["loss"].new_tensor(weight)}

    def annealed(module: Any, epoch: int) -> dict[str, float]:
        module.set_summary_weight(0.0)
        assert evaluate is not None
        return evaluate(module, epoch)

    trained = _run(model, source, cfg, state_dir, loss, annealed if evaluate else None)
    model.set_summary_weight(0.0)
    model.drop_summary_projections()
    return trained


def extend(
    model: Qwen3KsaForCausalLM,
    source_of: Callable[[StageConfig], Source],
    cfg: ExtendConfig,
    state_dir: Path,
    *,
    trained_length: int,
    evaluate_of: Callable[[StageConfig], Evaluate] | None = None,
) -> list[Trained]:
    """Stage 3: train all weights on rows of one length after the other, each with a fresh optimiser.

    The base of the rotary positions grows before each by (length / length before) ** `rope_power`; the paper
    says that the base is adjusted and not how.

    Args:
        model: trained on rows of `trained_length`.
        source_of: a length's settings -> its rows.
        cfg: lengths, steps, optimiser, checkpointing.
        state_dir: has one folder for each length.
        trained_length: tokens of the rows before.
        evaluate_of: a length's settings -> what measures it, see `pretrain`.

    Raises:
        ConfigError: see `pretrain`.
        ModelError: training broke down.
    """
    found = []
    for length in cfg.lengths:
        stage = cfg.stage(length)
        raise_rope_base(model, (length / trained_length) ** cfg.rope_power, length)
        evaluate = evaluate_of(stage) if evaluate_of else None
        found.append(pretrain(model, source_of(stage), stage, state_dir / f"length-{length}", evaluate))
        trained_length = length
    return found


def raise_rope_base(model: Qwen3KsaForCausalLM, factor: float, length: int) -> None:
    """Multiply the base of the rotary positions, and make the model good for texts of a length."""
    config = model.config
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_theta": config.rope_parameters["rope_theta"] * factor,
    }
    config.max_position_embeddings = max(config.max_position_embeddings, length)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(model.device)


def _joined(first: FitResult, then: FitResult) -> FitResult:
    """One run out of two; the first one, which nothing was measured in, is an epoch."""
    moved = {"epoch": len(first.history), "step": first.num_steps}
    rows = [row | {name: row[name] + by for name, by in moved.items()} for row in then.history]
    return FitResult(
        history=[*first.history, *rows],
        best_epoch=then.best_epoch if then.best_epoch < 0 else then.best_epoch + len(first.history),
        best_metric=then.best_metric,
        num_steps=first.num_steps + then.num_steps,
        seconds=first.seconds + then.seconds,
    )


def _run(
    model: Qwen3KsaForCausalLM,
    source: Source,
    cfg: StageConfig,
    state_dir: Path,
    loss: Loss,
    evaluate: Evaluate | None,
) -> Trained:
    _claim(state_dir, _kind(model, cfg, loss))
    with _recomputing(model) if cfg.checkpointing else nullcontext():
        result = fit(
            model,
            batches=epochs(source, cfg.training.batch_size, cfg.steps_per_epoch),
            num_batches=cfg.steps_per_epoch,
            loss=loss,
            config=cfg.training,
            state_dir=state_dir,
            evaluate=evaluate,
            monitor=MONITOR,
        )
    return Trained(model, result)


def _claim(state_dir: Path, kind: dict[str, Any]) -> None:
    """Refuse the state of another run of the same shapes, data and optimiser."""
    path = state_dir / "kind.json"
    if not path.is_file():
        if is_first_process():
            write_json(path, kind)
        return
    found = read_json(path)
    if other := [name for name in kind if found.get(name) != kind[name]]:
        name = other[0]
        raise ConfigError(f"{state_dir} holds another run: {name} is {found.get(name)}, not {kind[name]}")


def _kind(model: Qwen3KsaForCausalLM, cfg: StageConfig, loss: Loss) -> dict[str, Any]:
    """Tell what is trained, and on what loss: what shapes and the optimiser's settings do not show."""
    config = {name: value for name, value in model.config.to_dict().items() if name in _DECIDING}
    # Checkpointing gives the same bits; a run may go on with or without it.
    free = ("training", "checkpointing")
    terms = {name: value for name, value in asdict(cfg).items() if name not in free}
    found = {"stage": type(cfg).__name__, "all text raw": isinstance(loss, partial), **terms, **config}
    return dict(json.loads(json.dumps(found)))


@contextmanager
def _recomputing(model: Qwen3KsaForCausalLM) -> Iterator[None]:
    """Layers keep their inputs alone inside the block, and are computed again in the backward pass."""
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _next_token(module: Any, batch: TextBatch, *, full: bool = False) -> dict[str, Tensor]:
    states_BTD = module.model.text_states(batch.input_ids_BT, document_BT=batch.document_BT, full=full)
    terms = token_terms(states_BTD, module.lm_head.weight, batch.label_BT)
    return {"loss": terms.lm, "weight": num_targets(batch.label_BT)}


def _distilled(module: Any, batch: TextBatch, cfg: DistilConfig) -> dict[str, Tensor]:
    own: list[Tensor] = []
    teacher: list[Tensor] = []
    ids_BT, label_BT, document_BT = batch.input_ids_BT, batch.label_BT, batch.document_BT
    with torch.no_grad():
        teacher_BTD = module.model.text_states(
            ids_BT, document_BT=document_BT, full=True, attention_outputs=teacher
        )
    own_BTD = module.model.text_states(ids_BT, document_BT=document_BT, attention_outputs=own)
    tokens = token_terms(own_BTD, module.lm_head.weight, label_BT, teacher_BTD)
    layers = attention_terms(own, teacher, label_BT, clip=cfg.mse_clip, with_cos=cfg.cos_weight > 0)
    loss = cfg.lm_weight * tokens.lm + cfg.kl_weight * tokens.kl
    loss = loss + cfg.mse_weight * layers.mse + cfg.cos_weight * layers.cos
    terms = {"loss": loss, "lm": tokens.lm, "kl": tokens.kl, "mse": layers.mse}
    return terms | {"cos": layers.cos, "weight": num_targets(label_BT)}
