"""Places that the host works out are those that the device works out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from feedworks_kernels.summary_decode import CacheLayout, Places, host_places, to_device
from feedworks_kernels.summary_decode.layout import places


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 99])
@pytest.mark.parametrize("summaries", [1, 2, 3])
@pytest.mark.parametrize("window", [None, 0, 1, 3, 100])
def test_the_host_finds_the_same_places(chunk: int, summaries: int, window: int | None) -> None:
    drawn = random.Random(0)
    for trial in range(12):
        layout = CacheLayout(chunk, window, drawn.randint(1, 60), summaries)
        slots = drawn.sample(range(6), drawn.randint(0, 6))
        lengths = [drawn.randrange(layout.capacity) for _ in range(6)]
        chosen = [lengths[slot] for slot in slots]
        ending = [b for b, length in enumerate(chosen) if length % chunk == chunk - 1]
        given = bool(ending) or trial % 2 == 0
        expected = places(
            layout,
            torch.tensor(lengths),
            torch.tensor(slots, dtype=torch.int64),
            torch.tensor(ending, dtype=torch.int64) if given else None,
            summaries=given,
        )
        arrays = (np.array(values, dtype=np.int64) for values in (slots, chosen))
        found = Places(*to_device(host_places(layout, *arrays, summaries=given), torch.device("cpu")))
        for name, ours, theirs in zip(Places._fields, found, expected, strict=True):
            assert ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), name
