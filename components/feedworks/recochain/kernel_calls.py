"""RecoChain (arXiv 2604.25787): the launches of its presets on a GPU, for `feedworks_kernels.ahead`.

Sizes that no kernel is compiled for (requests of a batch, items, semantic IDs) are any. Tokens of items are
made on the CPU, in the service too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from feedworks.recochain.config import PRESETS, SearchConfig
from feedworks_kernels import beam_step
from feedworks_kernels.ahead import Call


def calls(*, training: bool) -> Iterator[Call]:
    """Yield the steps of every preset's beam search; with `training` of the evaluation's sweep, too."""
    for preset, make in PRESETS.items():
        config = make()
        sweep = config.evaluation.sweep_beams if training else ()
        for beam in dict.fromkeys((config.search.beam, *sweep)):
            yield Call(
                f"recochain {preset}: {beam} beams",
                partial(_search, config.tokenizer.codes, beam, config.search),
            )


def _search(codes: int, beam: int, config: SearchConfig) -> None:
    """The first step, from the root, and the next ones, which are alike. As `search.beam_search`."""
    for num_beams in (1, beam):
        node = torch.zeros(1, num_beams, dtype=torch.long)
        start, code = torch.zeros(2, dtype=torch.int32), torch.zeros(codes, dtype=torch.int32)
        logits, score = torch.zeros(1, num_beams, codes), torch.zeros(1, num_beams)
        beam_step(logits, score, node, start, code, beam, config.normalise)
