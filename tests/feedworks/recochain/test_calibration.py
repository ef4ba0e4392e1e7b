"""The linear start of the ranker: right weights from planted ones, and the better of any others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.recochain.calibration import fit_evidence
from feedworks.recochain.losses import rank_loss

TRUE = torch.tensor([1.5, -0.8, 0.0], dtype=torch.double)


def planted(kind: str, rows: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose clicks follow TRUE; in each row the first piece of evidence has an offset of its own."""
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(rows, 8, 3, generator=generator, dtype=torch.double)
    evidence[..., 0] += 3 * torch.randn(rows, 1, generator=generator, dtype=torch.double)
    noise = -torch.log(-torch.rand(rows, 8, generator=generator, dtype=torch.double).log())
    clicked = (evidence @ TRUE + noise).argmax(dim=1)
    order = (torch.arange(8) != clicked[:, None]).int().argsort(dim=1, stable=True)
    return evidence.gather(1, order[..., None].expand(-1, -1, 3)), torch.ones(rows, 8, dtype=torch.bool)


def test_listwise_finds_the_weights_that_chose_the_clicks_whatever_the_row():
    weights, _ = fit_evidence(*planted("listwise"), "listwise")
    np.testing.assert_allclose(weights, TRUE, atol=0.08)


def test_bce_spends_the_weight_on_the_differences_between_rows():
    weights, _ = fit_evidence(*planted("bce"), "bce")
    assert weights[0] < 0.3  # 1.5 within a row


@pytest.mark.parametrize("kind", ["bce", "listwise"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_no_other_weights_have_a_lower_loss(kind, data):
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    evidence = torch.randn(6, 4, 2, generator=generator, dtype=torch.double)
    present = torch.rand(6, 4, generator=generator) < 0.7
    present[:, 0] = True
    weights, bias = fit_evidence(evidence, present, kind)
    scale = evidence[present].std(dim=0, correction=0) + 1e-6

    def objective(weights, bias):
        penalty = (weights * scale).square().sum() / 2 / len(evidence)
        return float(rank_loss(evidence @ weights + bias, present, kind) + penalty)

    found = torch.tensor(weights, dtype=torch.double)
    best = objective(found, bias)
    for _ in range(20):
        other = found + 0.1 * torch.randn(2, generator=generator, dtype=torch.double)
        assert best <= objective(other, bias + 0.1 * float(torch.randn((), generator=generator))) + 1e-9


@pytest.mark.parametrize("kind", ["bce", "listwise"])
def test_constant_evidence_gets_no_weight_and_separable_rows_stay_finite(kind):
    evidence = torch.zeros(5, 3, 2)
    evidence[:, 0, 1] = 1
    weights, bias = fit_evidence(evidence, torch.ones(5, 3, dtype=torch.bool), kind)
    assert weights[0] == 0
    assert 1 < weights[1] < 100
    assert abs(bias) < 100


def test_absent_candidates_do_not_count():
    evidence, present = planted("listwise", rows=50)
    present[:, 5:] = False
    before = fit_evidence(evidence, present, "listwise")
    evidence[:, 5:] = 1e6
    after = fit_evidence(evidence, present, "listwise")
    np.testing.assert_allclose(before[0], after[0])
