"""Steps of needles among steps of text: as many as asked for, spread evenly, each source from its start."""

from __future__ import annotations

import pytest
import torch

from feedworks.ksa.data import Drawn, TextBatch
from feedworks.ksa.mixing import Alternating


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
