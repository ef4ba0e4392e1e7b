import pytest
import torch
import torch.nn.functional as F

from feedworks.ksa.losses import IGNORED, attention_terms, next_token_losses, num_targets, token_terms

B, T, D, V = 3, 7, 5, 11


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(B, T, D, generator=generator, requires_grad=True)
    teacher = torch.randn(B, T, D, generator=generator, requires_grad=True)
    head = torch.randn(V, D, generator=generator, requires_grad=True)
    label = torch.randint(V, (B, T), generator=generator)
    label[0, :4] = IGNORED
    label[2] = IGNORED
    label[2, 0] = 3  # nothing before it could predict it
    return states, teacher, head, label


def plain(states, teacher, head, label):
    logits, expected = states @ head.T, (teacher @ head.T).detach().softmax(-1)
    asked = label[:, 1:] != IGNORED
    lm = F.cross_entropy(logits[:, :-1].flatten(0, 1), label[:, 1:].flatten(), ignore_index=IGNORED)
    divergence = (expected * (expected.log() - logits.log_softmax(-1))).sum(-1)[:, :-1]
    return lm, divergence[asked].mean()


@pytest.mark.parametrize("max_logits", [1, 2 * V, 1 << 20])
def test_terms_and_gradients_are_the_definition_however_they_are_cut(case, max_logits):
    states, teacher, head, label = case
    lm, kl = plain(*case)
    expected = torch.autograd.grad(lm + 3 * kl, (states, head))
    found = token_terms(states, head, label, teacher, max_logits=max_logits)
    torch.testing.assert_close(found.lm, lm)
    torch.testing.assert_close(found.kl, kl)
    total = found.lm + 3 * found.kl
    for one, other in zip(torch.autograd.grad(total, (states, head)), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert num_targets(label) == (label[:, 1:] != IGNORED).sum() == 9


def test_no_gradient_reaches_the_teacher(case):
    states, teacher, head, label = case
    token_terms(states, head, label, teacher).kl.backward()
    assert teacher.grad is None
    assert states.grad.abs().sum() > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(case):
    states, _, head, label = case
    kl = token_terms(states, head, label, states).kl
    assert abs(kl.item()) < 1e-6
    assert torch.autograd.grad(kl, states)[0].abs().max() < 1e-6
    assert attention_terms([states], [states], label, clip=0.1, with_cos=True).mse == 0


def test_rows_without_targets_cost_nothing_and_do_not_break(case):
    states, teacher, head, label = case
    found = token_terms(states, head, torch.full_like(label, IGNORED), teacher)
    (found.lm + found.kl).backward()
    assert found.lm == found.kl == 0
    assert states.grad.abs().sum() == 0


def test_weighed_parts_add_up_to_the_whole(case):
    states, teacher, head, label = case
    whole = token_terms(states, head, label, teacher)
    layers = attention_terms([states], [teacher], label, clip=0.5, with_cos=True)
    sums = torch.zeros(4)
    for row in range(B):
        one = label[row : row + 1]
        own, other = states[row : row + 1], teacher[row : row + 1]
        tokens = token_terms(own, head, one, other)
        layers_of_row = attention_terms([own], [other], one, clip=0.5, with_cos=True)
        sums += num_targets(one) * torch.stack([*tokens, *layers_of_row])
    torch.testing.assert_close(sums / num_targets(label), torch.stack([*whole, *layers]))


def test_attention_terms_by_hand():
    label = torch.tensor([[0, 1, IGNORED]])  # one target: the state at place 0 is compared
    own = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.2, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    other = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    found = attention_terms([own, other], [teacher, other], label, clip=0.1, with_cos=True)
    assert found.mse.item() == pytest.approx((0.04 + 0.1) / 2 / 2)  # two numbers, two layers
    cosine = (1.2 + 10) / (5**0.5 * (1.2**2 + 25) ** 0.5)
    assert found.cos.item() == pytest.approx((1 - cosine) / 2, rel=1e-5)
    found.mse.backward()
    # Beyond the clip there is no gradient, at other places neither.
    assert own.grad.flatten().tolist() == pytest.approx([2 * -0.2 / 4, 0, 0, 0, 0, 0])


def test_losses_of_single_tokens(case):
    states, _, head, _ = case
    ids = torch.arange(B * T).view(B, T) % V
    found = next_token_losses(states, head, ids, max_logits=3 * V)
    expected = F.cross_entropy((states @ head.T)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(found, expected)
    assert found.shape == (B, T - 1)
