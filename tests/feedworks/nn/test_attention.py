"""Attention with padding, and the Q-Former: what is not there has no influence, not even as NaN."""

from __future__ import annotations

import pytest
import torch

from feedworks.nn.attention import MaskedAttention, masked_mean, real_places
from feedworks.nn.qformer import QFormer

B, Q, D, S, T_MAX = 5, 3, 8, 6, 7


def qformer(dropout: float = 0.0) -> QFormer:
    torch.manual_seed(0)
    return QFormer(
        width=D, num_queries=Q, num_layers=2, num_heads=2, source_width=S, condition_width=4, dropout=dropout
    ).eval()


def test_attention_is_softmax_over_the_real_tokens() -> None:
    torch.manual_seed(1)
    attention = MaskedAttention(D, 1, source_width=S).double()
    query_BQD, source_BTS = torch.randn(B, Q, D).double(), torch.randn(B, T_MAX, S).double()
    length_B = torch.tensor([0, 1, 3, 6, 7])
    found = attention(query_BQD, source_BTS, real_places(length_B, T_MAX))
    for row, length in enumerate(length_B.tolist()):
        key, value = attention.key_value(source_BTS[row, :length]).chunk(2, dim=-1)
        weight = (attention.query(query_BQD[row]) @ key.T / D**0.5).softmax(dim=-1)
        torch.testing.assert_close(found[row], attention.out(weight @ value))
    assert not found[0].any()


def test_causal_attention_does_not_look_ahead() -> None:
    torch.manual_seed(2)
    attention = MaskedAttention(D, 2)
    x_BTD, real_BT = torch.randn(B, T_MAX, D), torch.ones(B, T_MAX, dtype=torch.bool)
    changed = x_BTD.clone()
    changed[:, 4:] = torch.nan
    before, after = (attention(x, x.nan_to_num(), real_BT, causal=True) for x in (x_BTD, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("length", range(T_MAX + 1))
def test_the_qformer_gives_as_many_tokens_for_any_length(length: int) -> None:
    found = qformer()(torch.randn(B, length, S), torch.ones(B, length, dtype=torch.bool), torch.randn(B, 4))
    assert found.shape == (B, Q, D)
    assert found.isfinite().all()


def test_padding_has_no_influence_not_even_nan() -> None:
    module, x_BU = qformer(), torch.randn(B, 4)
    length_B = torch.tensor([0, 1, 3, 6, 7])
    real_BT, source_BTS = real_places(length_B, T_MAX), torch.randn(B, T_MAX, S)
    poisoned = source_BTS.masked_fill(~real_BT.unsqueeze(-1), torch.nan)
    assert torch.equal(module(source_BTS, real_BT, x_BU), module(poisoned, real_BT, x_BU))
    alone = module(source_BTS[2:3, :3], real_BT[2:3, :3], x_BU[2:3])
    torch.testing.assert_close(alone, module(source_BTS, real_BT, x_BU)[2:3])


def test_an_empty_sequence_leaves_the_condition_alone() -> None:
    module, x_BU = qformer(), torch.randn(B, 4)
    none_BT = torch.zeros(B, T_MAX, dtype=torch.bool)
    found = module(torch.randn(B, T_MAX, S), none_BT, x_BU)
    assert torch.equal(found, module(torch.randn(B, T_MAX, S), none_BT, x_BU))
    assert not torch.equal(found, module(torch.randn(B, T_MAX, S), none_BT, x_BU + 1))


def test_gradients_are_finite_where_a_row_is_empty() -> None:
    module = qformer(dropout=0.5).train()
    length_B = torch.tensor([0, 0, 3, 6, 7])
    source_BTS = torch.randn(B, T_MAX, S, requires_grad=True)
    module(source_BTS, real_places(length_B, T_MAX), torch.randn(B, 4)).square().sum().backward()
    assert source_BTS.grad is not None
    assert source_BTS.grad.isfinite().all()
    assert not source_BTS.grad[:2].any()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in module.parameters())


def test_masked_mean_of_nothing_is_zero() -> None:
    x_BTD = torch.full((2, 3, 2), torch.nan)
    x_BTD[1, 0] = torch.tensor([2.0, 4.0])
    x_BTD[1, 1] = torch.tensor([4.0, 8.0])
    found = masked_mean(x_BTD, real_places(torch.tensor([0, 2]), 3))
    assert found.tolist() == [[0, 0], [3, 6]]


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MaskedAttention(10, 4)
