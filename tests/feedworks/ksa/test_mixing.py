"""Steps of needles among steps of text: as many as asked for, spread evenly, each source from its start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from feedworks.ksa.config import resolve
from feedworks.ksa.data import Drawn, TextBatch
from feedworks.ksa.mixing import Alternating, training_source
from feedworks.ksa.needles import Needle

from .training import CHUNK, SEQ_LEN, stage


def numbered(offset: int) -> Drawn:
    def draw(step: int, size: int) -> TextBatch:
        ids_BT = torch.full((size, 2), offset + step)
        return TextBatch(ids_BT, ids_BT)

    return Drawn(draw)


@pytest.mark.parametrize(
    ("share", "steps"),
    [
        (0.25, [0, 1, 2, 100, 3, 4, 5, 101]),
        (0.5, [0, 100, 1, 101, 2, 102, 3, 103]),
        (1.0, [100, 101, 102, 103, 104, 105, 106, 107]),
        (0.0, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_steps_alternate_evenly(share: float, steps: list[int]) -> None:
    source = Alternating(numbered(0), numbered(100), share)
    assert [int(source.batch(step, 3).input_ids_BT[0, 0]) for step in range(8)] == steps


def needle(length: int) -> Needle:
    """A prompt of one token over and over, as long as it may be."""
    ids_T = np.full(length - 2, length, np.int32)
    return Needle("single", length, 0.0, "", "", ("",), ids_T, np.array([1], np.int32))


def test_needles_that_just_fill_a_row_are_trained_on_and_longer_ones_are_not() -> None:
    file: Any = SimpleNamespace(tokens=np.full(4000, 2), starts=[0, 4000], end_id=0)
    given = stage()
    cfg = resolve("tiny", ["needles.train_share=0.5"])
    fitting, longer = needle(SEQ_LEN), needle(SEQ_LEN + 1)
    source = training_source(file, [fitting, longer], given, cfg, CHUNK)
    assert set(source.batch(0, 8).input_ids_BT.flatten().tolist()) == {2}
    assert source.batch(1, 8).input_ids_BT.tolist() == [[*[SEQ_LEN] * (SEQ_LEN - 2), 1, 0]] * 8
    for needles, share in (([longer], 0.5), ([fitting], 0.0)):
        cfg = resolve("tiny", [f"needles.train_share={share}"])
        source = training_source(file, needles, given, cfg, CHUNK)
        assert set(source.batch(1, 8).input_ids_BT.flatten().tolist()) == {2}
