"""A tiny random model with a small byte-level vocabulary, packaged as the service loads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from feedworks.ksa.cache import KsaCache
from feedworks.ksa.checkpoint import save
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.packaging import write_folder
from feedworks.ksa.settings import PackageConfig

from .decoders import decoder

TARGET = "feedworks.ksa.service:KsaService"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS, START, END = range(3)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "the old sea is wide and the ship is small; naïve cafés, 日本語 and 🦊 are written, too. "
VOCAB = 320
LONGEST = 40
LIMITS = PackageConfig(max_context=96, max_streams=4, max_queue=6, max_new_tokens=80)


def write_tokenizer(folder: Path, *, chat: bool = True) -> Path:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT * 3], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[EOS])
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@lru_cache
def model(**settings: Any) -> Qwen3KsaForCausalLM:
    return decoder(vocab_size=VOCAB, eos_token_id=EOS, **settings)


def write_package(
    folder: Path, limits: PackageConfig = LIMITS, *, chat: bool = True, **settings: Any
) -> Path:
    parts = folder.with_name(f"{folder.name}-parts")
    save(model(**settings), parts / "model")
    write_tokenizer(parts / "tokenizer", chat=chat)
    write_folder(folder, parts / "model", parts / "tokenizer", limits, {})
    return folder


def alone(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the model says greedily, by its plain forward pass over all tokens."""
    return list(_alone(tuple(prompt))[:num_tokens])


@lru_cache
def _alone(prompt: tuple[int, ...]) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(LONGEST):
        with torch.no_grad():
            tokens.append(int(model()(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == EOS:
            break
    return tuple(tokens[len(prompt) :])


def cache(num_slots: int = LIMITS.max_streams, capacity: int = LIMITS.max_context) -> KsaCache:
    return KsaCache(model().config, num_slots, capacity)
