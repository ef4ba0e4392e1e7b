"""The shared-prefix decoder: continuing a prefix is the same as running the concatenated sequence."""

from __future__ import annotations

import math

import pytest
import torch

from feedworks.nn.transformer import Attention, Decoder, rotary, rotation, select_branches

WIDTH = 16


def decoder(seed: int = 0, *, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(width=WIDTH, num_layers=3, num_heads=2, hidden=24, dropout=dropout)
    for parameter in made.parameters():  # larger than the initial 0.02, so that attention is not flat
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.double().eval()


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_branches_of_a_padded_prefix_equal_a_pass_over_the_concatenated_sequence():
    model = decoder()
    length_B = torch.tensor([5, 1, 3])
    prefix_BTD, new_BKQD = tokens(3, 5), tokens(3, 4, 3, seed=2)
    _, prefix = model.prefill(prefix_BTD, length_B)
    found, _ = model.extend(new_BKQD, prefix)
    for row, length in enumerate(length_B.tolist()):
        for branch in range(4):
            whole = torch.cat((prefix_BTD[row, :length], new_BKQD[row, branch]))
            torch.testing.assert_close(found[row, branch], model(whole[None])[0, length:])


def test_padding_holds_nothing_that_a_branch_can_see():
    model = decoder()
    length_B = torch.tensor([5, 2])
    prefix_BTD, new_BKQD = tokens(2, 5), tokens(2, 1, 2, seed=2)
    before, _ = model.extend(new_BKQD, model.prefill(prefix_BTD, length_B)[1])
    prefix_BTD[1, 2:] = 100.0
    after, _ = model.extend(new_BKQD, model.prefill(prefix_BTD, length_B)[1])
    assert torch.equal(before, after)


def test_the_last_state_alone_is_that_of_all():
    model = decoder()
    _, prefix = model.prefill(tokens(2, 4), torch.tensor([4, 2]))
    new_BKQD = tokens(2, 3, 4, seed=2)
    whole, _ = model.extend(new_BKQD, prefix)
    last, _ = model.extend(new_BKQD, prefix, last_only=True)
    torch.testing.assert_close(last, whole[:, :, -1:])
    _, branch = model.extend(new_BKQD[:, :, :2], prefix)
    last, _ = model.extend(new_BKQD[:, :, 2:], prefix, branch, last_only=True)
    torch.testing.assert_close(last, whole[:, :, -1:])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_extending_in_parts_equals_extending_at_once(cut):
    model = decoder()
    _, prefix = model.prefill(tokens(2, 4), torch.tensor([4, 2]))
    new_BKQD = tokens(2, 3, 4, seed=2)
    at_once, _ = model.extend(new_BKQD, prefix)
    first, branch = model.extend(new_BKQD[:, :, :cut], prefix)
    second, branch = model.extend(new_BKQD[:, :, cut:], prefix, branch)
    torch.testing.assert_close(torch.cat((first, second), dim=2), at_once)
    assert branch[0].key.shape == (2, 3, 2, 4, WIDTH // 2)


def test_selected_branches_go_on_from_their_parents():
    model = decoder()
    _, prefix = model.prefill(tokens(2, 4), torch.tensor([4, 3]))
    first_BKQD, parent_BW = tokens(2, 3, 2, seed=2), torch.tensor([[2, 2, 0, 1], [0, 1, 1, 1]])
    second_BWQD = tokens(2, 4, 1, seed=3)
    _, branch = model.extend(first_BKQD, prefix)
    found, _ = model.extend(second_BWQD, prefix, select_branches(branch, parent_BW))
    chosen = first_BKQD[torch.arange(2)[:, None], parent_BW]
    whole, _ = model.extend(torch.cat((chosen, second_BWQD), dim=2), prefix)
    torch.testing.assert_close(found, whole[:, :, 2:])


def test_branches_do_not_see_each_other():
    model = decoder()
    _, prefix = model.prefill(tokens(1, 4), torch.tensor([4]))
    new_BKQD = tokens(1, 3, 2, seed=2)
    before, _ = model.extend(new_BKQD, prefix)
    new_BKQD[0, 1] += 1
    after, _ = model.extend(new_BKQD, prefix)
    assert torch.equal(before[0, [0, 2]], after[0, [0, 2]])
    assert not torch.allclose(before[0, 1], after[0, 1])


def test_a_later_token_changes_nothing_before_it():
    model = decoder()
    x_BTD = tokens(1, 6)
    before = model(x_BTD)
    x_BTD[0, 3] += 1
    after = model(x_BTD)
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.isclose(before[0, 3:], after[0, 3:]).all(dim=-1).any()


def turn(x: torch.Tensor, position: int) -> torch.Tensor:
    return rotary(x, rotation(torch.tensor([position]), x.shape[-1]))


def test_rotary_products_depend_on_the_distance_alone():
    q, k = tokens(1), tokens(1, seed=2)

    def product(at_q: int, at_k: int) -> torch.Tensor:
        return (turn(q, at_q) * turn(k, at_k)).sum()

    torch.testing.assert_close(product(3, 1), product(103, 101), rtol=1e-4, atol=1e-4)
    assert abs(product(3, 1) - product(4, 1)) > 1e-3
    assert torch.equal(turn(q, 0), q)
    torch.testing.assert_close(turn(q, 9).norm(), q.norm(), rtol=1e-5, atol=1e-5)


def test_rotary_by_hand():
    # Halves are pairs: (x0, x2) turn by the position, (x1, x3) by a hundredth of it at width 4.
    turned = turn(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), 2)
    by_hand = [math.cos(2), -math.sin(0.02), math.sin(2), math.cos(0.02)]
    torch.testing.assert_close(turned, torch.tensor([by_hand]))


def test_gradients_of_the_branches_reach_prefix_and_parameters_as_in_the_concatenated_pass():
    model = decoder()
    prefix_BTD, new_BKQD = tokens(1, 3).requires_grad_(), tokens(1, 1, 2, seed=2)
    _, prefix = model.prefill(prefix_BTD, torch.tensor([3]))
    model.extend(new_BKQD, prefix)[0].square().sum().backward()
    branched = [p.grad.clone() for p in (prefix_BTD, *model.parameters())]
    model.zero_grad()
    prefix_BTD.grad = None
    model(torch.cat((prefix_BTD, new_BKQD[:, 0]), dim=1))[:, 3:].square().sum().backward()
    for one, other in zip(branched, (prefix_BTD, *model.parameters()), strict=True):
        torch.testing.assert_close(one, other.grad)
        assert one.abs().max() > 0


def test_dropout_acts_in_training_alone():
    model = decoder(dropout=0.5)
    x_BTD = tokens(1, 4)
    assert torch.equal(model(x_BTD), model(x_BTD))
    model.train()
    assert not torch.equal(model(x_BTD), model(x_BTD))
    _, prefix = model.eval().prefill(x_BTD, torch.tensor([4]))
    model.train()
    new_BKQD = tokens(1, 2, 2, seed=2)
    assert not torch.equal(model.extend(new_BKQD, prefix)[0], model.extend(new_BKQD, prefix)[0])


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 2 \\* num_heads = 6"):
        Attention(16, 3, 0.0)
