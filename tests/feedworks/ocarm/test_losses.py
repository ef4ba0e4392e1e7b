"""Losses: range and invariance of the similarity, missing labels, and where gradients may not go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feedworks.ocarm.losses import alignment_loss, retention_loss

B, H, D = 6, 2, 5


def vectors(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(B, H, D, generator=torch.Generator().manual_seed(seed)) * scale


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_cosine_lies_between_0_and_2_and_ignores_scale(seed: int, left: float, right: float) -> None:
    own, other = vectors(seed), vectors(seed + 1)
    found = alignment_loss(own, other, "cosine") / H
    assert -1e-6 <= found <= 2 + 1e-6
    torch.testing.assert_close(alignment_loss(own * left, other * right, "cosine") / H, found)


def test_cosine_is_0_when_equal_and_2_when_opposite() -> None:
    own = vectors(0)
    torch.testing.assert_close(alignment_loss(own, own * 3, "cosine") + 1, torch.tensor(1.0))
    torch.testing.assert_close(alignment_loss(own, -own, "cosine"), torch.tensor(2.0 * H))


@pytest.mark.parametrize("similarity", ["cosine", "mse", "infonce"])
def test_no_gradient_reaches_the_teacher(similarity: str) -> None:
    own, teacher = vectors(0).requires_grad_(), vectors(1).requires_grad_()
    alignment_loss(own, teacher, similarity).backward()  # type: ignore[arg-type]
    assert teacher.grad is None
    assert own.grad is not None
    assert own.grad.abs().sum() > 0


@pytest.mark.parametrize("similarity", ["cosine", "mse", "infonce"])
def test_a_row_without_a_target_is_left_out(similarity: str) -> None:
    own, teacher = vectors(0).requires_grad_(), vectors(1)
    teacher[2] = torch.nan
    found = alignment_loss(own, teacher, similarity)  # type: ignore[arg-type]
    found.backward()
    kept = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(found, alignment_loss(own[kept], teacher[kept], similarity))  # type: ignore[arg-type]
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert not own.grad[2].any()


def test_infonce_is_least_for_ones_own_vector() -> None:
    teacher = vectors(1)
    turned = teacher.roll(1, dims=0)
    assert alignment_loss(teacher, teacher, "infonce") < alignment_loss(turned, teacher, "infonce")


def test_missing_labels_do_not_count() -> None:
    logit, label = torch.randn(3, 2, requires_grad=True), torch.tensor([[0.0, 1], [torch.nan, 0.4], [1, 0]])
    found = retention_loss(logit, label)
    known = ~label.isnan()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit[known], label[known])
    torch.testing.assert_close(found, expected)
    found.backward()
    assert logit.grad is not None
    assert logit.grad[1, 0] == 0
    assert retention_loss(logit, torch.full((3, 2), torch.nan)) == 0
