"""A small model and a text that it can learn; also a script that runs one stage."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from feedworks.configuration import with_overrides
from feedworks.ksa import stages
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.heldout import evaluation, heldout_loss, rows_of
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.settings import AnnealConfig, DistilConfig, ExtendConfig, PretrainConfig, StageConfig
from feedworks.training.settings import TrainConfig

VOCAB, CHUNK, SEQ_LEN = 48, 4, 48
TRAINING = TrainConfig(
    epochs=2, batch_size=4, lr=5e-3, grad_clip=1.0, checkpoint_every_s=1e9, accelerator="cpu"
)
EVERY_STEP = replace(TRAINING, checkpoint_every_s=0)
STAGES = ("pretrain", "distil", "anneal", "extend")


class Text(NamedTuple):
    tokens: np.ndarray
    starts: np.ndarray


def text(num_tokens: int = 4000, seed: int = 0) -> Text:
    """A walk with small steps, in documents of any length, some shorter than a chunk and one empty."""
    rng = np.random.default_rng(seed)
    tokens = (np.cumsum(rng.integers(1, 4, num_tokens)) % VOCAB).astype(np.uint16)
    inner = np.sort(rng.choice(num_tokens, 60, replace=False))
    return Text(tokens, np.array([0, *inner[:30], inner[29], *inner[30:], num_tokens]))


def model(seed: int = 0, **changes: Any) -> Qwen3KsaForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "chunk": CHUNK,
        "windows": [2, None],
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(seed)
    return Qwen3KsaForCausalLM(Qwen3KsaConfig(**(sizes | changes)))


def stage(name: str = "pretrain", *, steps: int = 6, training: TrainConfig = TRAINING, **changes: Any) -> Any:
    common = {"steps_per_epoch": steps, "training": training} | changes
    if name == "extend":
        return ExtendConfig(lengths=(64, 96), **common)
    kind = {"pretrain": PretrainConfig, "distil": DistilConfig, "anneal": AnnealConfig}[name]
    return kind(**({"seq_len": SEQ_LEN} | common))


# 24 steps each, of an extension 24 for each length; the state is written after every one.
STEPWISE = {name: stage(name, steps=12, training=EVERY_STEP) for name in STAGES}


def run(name: str, cfg: Any, state_dir: Path, trained: Qwen3KsaForCausalLM, evaluate: bool = True) -> Any:
    measured = evaluation(rows_of(text(seed=1).tokens, SEQ_LEN, 6)) if evaluate else None
    if name == "extend":

        def measured_of(each: StageConfig) -> Any:
            return evaluation(rows_of(text(seed=1).tokens, each.seq_len, 6))

        def source_of(each: StageConfig) -> Any:
            return stages.text_source(text(), each, CHUNK)

        return stages.extend(
            trained, source_of, cfg, state_dir, trained_length=SEQ_LEN, evaluate_of=measured_of
        )[-1]
    return getattr(stages, name)(trained, stages.text_source(text(), cfg, CHUNK), cfg, state_dir, measured)


def weights(trained: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def shortened(cfg: StageConfig, **changes: Any) -> StageConfig:
    return replace(cfg, training=replace(cfg.training, **changes))


def kill(name: str, state_dir: Path, seed: int, num_kills: int = 2) -> None:
    """Run a stage in child processes, kill each after some steps and a bit, then let one finish."""
    chosen = random.Random(seed)
    for attempt in range(num_kills + 1):
        target = _newest(state_dir) + chosen.randint(1, 5)
        child = os.fork()
        if child == 0:
            try:
                run(name, STEPWISE[name], state_dir, model())
                os._exit(0)
            finally:
                os._exit(1)
        if attempt < num_kills:
            while _newest(state_dir) < target and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            time.sleep(chosen.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) != (attempt < num_kills) or (attempt == num_kills and status):
            sys.exit(f"start {attempt} of {name} ended with status {status}")
        print(name, "killed" if attempt < num_kills else "done", "after step", _newest(state_dir), flush=True)


def _newest(state_dir: Path) -> int:
    """Steps done, over all lengths of an extension."""
    # Unlike rglob, walk goes on where a folder has gone since it was listed.
    names = [name for _, folders, _ in os.walk(state_dir) for name in folders]
    steps = [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]
    return 24 * names.count("final") + max(steps, default=0)


def main() -> None:
    """NAMES STATE_DIR [kills] [pack=] [checkpointing=] [setting=value of TrainConfig ...]."""
    names, state_dir, *rest = sys.argv[1:]
    if rest == ["kills"]:
        import lightning.fabric  # noqa: F401  the children must not spend their short lives on it

        for seed, name in enumerate(names.split(",")):
            kill(name, Path(state_dir) / name, seed)
        return
    pairs = dict(pair.split("=") for pair in rest)
    changes = {key: bool(pairs.pop(key)) for key in ("pack", "checkpointing") if key in pairs}
    training = with_overrides(TRAINING, [f"{key}={value}" for key, value in pairs.items()])
    for name in names.split(","):
        cfg = stage(name, training=training, **changes)
        trained = run(name, cfg, Path(state_dir) / name, model()).model
        kinds = {type(parameter.data) for parameter in trained.parameters()}
        assert kinds == {Tensor}, "the module is whole in every process"
        loss = heldout_loss(trained, rows_of(text(seed=1).tokens, SEQ_LEN, 6)).loss
        print(name, os.environ.get("RANK", 0), loss, flush=True)


if __name__ == "__main__":
    main()
