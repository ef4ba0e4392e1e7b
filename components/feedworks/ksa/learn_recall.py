"""KSA (arXiv 2604.24432): associative recall, learned from scratch by a decoder of three layers on a CPU.

Every attention trains for the same steps on the same rows, whose pairs lie further back than all layers' raw
windows together reach: what full attention does with the far text itself, summaries have to carry. A training
row holds some pairs several times and asks for them twice; a measured one holds each once and asks once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from feedworks.ksa import stages
from feedworks.ksa.arms import ARMS, Arm
from feedworks.ksa.data import TextBatch
from feedworks.ksa.learning import TRAINING, Row, fresh, of_seed, row_of
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.recall import RecallTask, out_of_reach, recall_accuracy, recall_batch
from feedworks.ksa.settings import ModelConfig, StageConfig
from feedworks.progress import say


class RecallPlan(NamedTuple):
    """How recall is learned and measured.

    Attributes:
        model: sizes; its windows reach `out_of_reach` tokens at most. Many heads, wide ones: the norms of
            queries and keys hold a logit below the root of a head's width at first, so that narrow heads
            learn to tell keys apart for a long time.
        stage: steps and optimiser.
        lesson: rows to train on.
        measured: every pair stands there once and is asked for once.
        num_measured: rows.
    """

    model: ModelConfig
    stage: StageConfig
    lesson: RecallTask
    measured: RecallTask
    num_measured: int = 1024


def recall_plan(num_steps: int = 1000) -> RecallPlan:
    """Three layers, chunks of 8 tokens, a window of one chunk more: nothing raw crosses 48 tokens."""
    model = ModelConfig(
        width=128,
        num_layers=3,
        num_heads=8,
        num_kv_heads=8,
        head_width=32,
        hidden=256,
        window=1,
        full_every=0,
        max_length=128,
        init_std=0.125,
    )
    training = replace(
        TRAINING,
        batch_size=24,
        lr=3e-3,
        weight_decay=0.0,
        schedule="wsd",
        min_lr_ratio=0.05,
        decay_steps=max(1, round(0.3 * num_steps)),
    )
    reach = out_of_reach(num_layers=model.num_layers, window=model.window, chunk=model.chunk)
    measured = RecallTask(
        length=128,
        gap=reach + model.chunk,
        num_pairs=4,
        num_queries=4,
        num_keys=8,
        num_values=8,
        num_noise=8,
    )
    return RecallPlan(
        model,
        StageConfig(seq_len=measured.length, steps_per_epoch=num_steps, training=training),
        lesson=replace(measured, num_queries=8, repeats=0.25, name_keys=True),
        measured=measured,
    )


def recall(
    out_dir: Path, plan: RecallPlan, *, arms: Sequence[Arm] = ARMS, seeds: Sequence[int] = (0,)
) -> Iterator[Row]:
    """Train each attention on recall and yield how often it names the value that is asked for.

    Args:
        out_dir: keeps the state of the runs.
        plan: sizes, tasks and steps.
        arms: attentions.
        seeds: of weights and rows, one run each.
    """
    for seed, arm in ((seed, arm) for seed in seeds for arm in arms):
        say(f"recall: {arm}, seed {seed}")
        model = fresh(arm, plan.model, seed, vocab_size=plan.measured.vocab_size)
        state = out_dir / "state" / f"recall-{arm}-{seed}"
        result = stages.pretrain(model, _Rows(plan.lesson, seed), of_seed(plan.stage, seed), state).result
        accuracy = _accuracy(model, plan, seed)
        found = {"gap": plan.measured.gap, "accuracy": accuracy, "chance": plan.measured.chance}
        yield row_of("recall", arm, seed, result) | found


class _Rows:
    """Training rows of a seed."""

    def __init__(self, task: RecallTask, seed: int) -> None:
        self._task, self._seed = task, seed

    def batch(self, step: int, size: int) -> TextBatch:
        """See `feedworks.ksa.data.Source`."""
        return TextBatch(*recall_batch(self._task, size, self._seed, "training", step))


@torch.no_grad()
def _accuracy(model: Qwen3KsaForCausalLM, plan: RecallPlan, seed: int) -> float:
    ids_BT, label_BT = recall_batch(plan.measured, plan.num_measured, seed, "measured")
    logits_BTV = torch.cat([model.eval()(part).logits for part in torch.split(ids_BT, 64)])
    return recall_accuracy(logits_BTV, label_BT)
