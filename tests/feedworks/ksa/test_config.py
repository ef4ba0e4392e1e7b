"""Settings: presets resolve and round-trip, and what cannot work is refused before anything is trained."""

from __future__ import annotations

import pytest

from feedworks.configuration import from_json, to_json
from feedworks.errors import ConfigError
from feedworks.ksa.config import PRESETS, KsaConfig, resolve


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_round_trip(preset: str) -> None:
    config = resolve(preset, ["needles.tasks=single,tracking", "distil.training.lr=0.5", "model.window=7"])
    assert from_json(KsaConfig, to_json(config)) == config
    assert (config.needles.tasks, config.distil.training.lr) == (("single", "tracking"), 0.5)


def test_a_stage_of_the_extension_has_its_length() -> None:
    config = resolve("paper").extend
    stages = [config.stage(length) for length in config.lengths]
    assert [stage.seq_len for stage in stages] == [32768, 65536, 131072]
    assert {stage.num_steps for stage in stages} == {1600}
    assert all(stage.pack and stage.checkpointing for stage in stages)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.chunk=0"], "at least 1"),
        (["model.summaries=5"], "at most chunk"),
        (["model.window=-1"], "at least 0"),
        (["model.num_heads=0"], "at least 1"),
        (["model.num_heads=-2"], "at least 1"),
        (["model.num_heads=3"], "multiple of num_kv_heads"),
        (["model.head_width=7"], "even"),
        (["model.rope_base=0"], "more than 0"),
        (["model.max_length=100"], "seq_len=256: expected at most model.max_length = 100"),
        (["corpus.vocab_size=10"], "260 to"),
        (["needles.tasks=single,single"], "each once"),
        (["needles.tasks="], "single, multi_key"),
        (["needles.tasks=double"], "expected one of"),
        (["needles.lengths=128,64"], "rising"),
        (["needles.depths=1.5"], "0 to 1"),
        (["needles.train_share=2"], "0 to 1"),
        (["pretrain.seq_len=1"], "8 to"),
        (["pretrain.steps_per_epoch=0"], "at least 1"),
        (["pretrain.training.lr=-1"], "at least 0"),
        (["distil.mse_clip=0"], "more than 0"),
        (["distil.lm_weight=0", "distil.kl_weight=0", "distil.mse_weight=0"], "every weight"),
        (["anneal.start=0.9"], "less than anneal.end"),
        (["extend.lengths=256,128"], "rising"),
        (["extend.lengths=256"], "extend.lengths=256: expected more than the 256 tokens before it"),
        (["extend.lengths=510", "extend.pack=true"], "whole chunks of 4"),
        (["evaluation.buckets=16,255"], "below 255"),
        (["evaluation.decode_tokens=1"], "at least 2"),
        (["evaluation.buckets=16,300"], "below 255"),
        (["evaluation.cache_lengths="], "such as 4096"),
        (["gate.min_needle=2"], "0 to 1"),
        (["package.max_streams=0"], "at least 1"),
        (["baselines=full,full"], "each once"),
        (["base.folder=qwen"], "set mode=convert"),
        (["mode=convert", "base.folder=qwen", "corpus.tokenizer=words"], "its own tokenizer"),
        (["mode=guess"], "pretrain, convert"),
        (["seed=-1"], "at least 0"),
        (["speed=1"], "known settings: seed"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve("tiny", overrides)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        resolve("huge")
