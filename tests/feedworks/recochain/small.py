"""A catalogue and an untrained model small enough to enumerate, with weights far from their flat start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import ModelConfig, tiny
from feedworks.recochain.model import RecoChain

CONFIG = ModelConfig(width=16, num_layers=2, num_heads=2, hidden=24, dropout=0.0, similarity_buckets=8)


def catalogue(
    *,
    num_items: int = 40,
    levels: int = 3,
    codes: int = 5,
    seed: int = 0,
    block_widths: tuple[int, ...] = (6,),
) -> Catalogue:
    """Random codes, so that some items share a semantic ID."""
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.standard_normal((num_items, 6), np.float32))
    return Catalogue.build(
        item_id_N=torch.arange(num_items) * 10 + 7,
        code_NL=torch.from_numpy(rng.integers(0, codes, (num_items, levels))),
        vector_NV=torch.nn.functional.normalize(vectors, dim=1),
        count_N=torch.from_numpy(np.sort(rng.integers(0, 50, num_items))[::-1].copy()),
        num_codes=codes,
        block_widths=block_widths,
    )


def model(of: Catalogue, *, seed: int = 0, **settings: object) -> RecoChain:
    torch.manual_seed(seed)
    made = RecoChain.for_catalogue(replace(CONFIG, **settings), of)
    for parameter in made.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return made.eval()


def padded(*histories: list[int]) -> torch.Tensor:
    longest = max(map(len, histories))
    return torch.tensor([history + [-1] * (longest - len(history)) for history in histories])


def quick(*overrides: str):
    """Preset tiny with a model of a few thousand weights and one epoch a stage."""
    from feedworks.configuration import with_overrides

    return with_overrides(
        tiny(),
        [
            *("model.width=16", "model.hidden=32", "model.num_layers=1", "tokenizer.codes=8"),
            *("generator.epochs=1", "joint.epochs=1", "sasrec_training.epochs=1"),
            *("evaluation.sweep_beams=", "evaluation.sweep_retrieved=", "evaluation.bootstrap=20"),
            *("gate.min_gain=-1", "search.beam=10"),
            *overrides,
        ],
    )
