"""residual_quantize: hand-worked codes, and every form against an exact search."""

from __future__ import annotations

import pytest
import torch

from feedworks_kernels import residual_quantize
from feedworks_kernels._dispatch import VARIABLE


@pytest.mark.parametrize("form", ["reference", "eager"])
def test_hand_worked(monkeypatch, form):
    monkeypatch.setenv(VARIABLE, form)
    codebooks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, -0.5]]])
    x = torch.tensor([[1.4, 0.1], [0.1, 0.5]])
    codes, residual = residual_quantize(x, codebooks)
    assert codes.tolist() == [[0, 0], [1, 1]]
    torch.testing.assert_close(residual, torch.tensor([[-0.1, 0.1], [0.1, 0.0]]))
    codes, residual = residual_quantize(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), codebooks[:1], normalise=True)
    assert codes.tolist() == [[0], [1]]
    torch.testing.assert_close(residual, torch.tensor([[-1.0, 0.0], [0.6, -0.2]]))
