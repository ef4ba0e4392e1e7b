"""Re-parameterised twins of hand-built models: equal scores, and the sites that must be found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feedworks.errors import ModelError
from feedworks.mari.convert import reparameterise

REQUEST_B = torch.tensor([0, 2, 1, 1, 2, 0, 0])


def twin_of(model: nn.Module, inputs: list[Tensor], sides: tuple[str, ...]):
    """Convert on one user's rows, then check one request and three mixed ones against the model."""
    model = model.eval().double()
    one = [
        x[:1].expand(7, *x.shape[1:]) if side == "user" else x for x, side in zip(inputs, sides, strict=True)
    ]
    twin, report = reparameterise(model, one, sides)
    with torch.no_grad():
        given = [x[:1] if side == "user" else x for x, side in zip(inputs, sides, strict=True)]
        torch.testing.assert_close(twin(*given), model(*one), rtol=1e-12, atol=1e-12)
        given = [x[:3] if side == "user" else x for x, side in zip(inputs, sides, strict=True)]
        tiled = [x[:3][REQUEST_B] if side == "user" else x for x, side in zip(inputs, sides, strict=True)]
        torch.testing.assert_close(twin(*given, request_B=REQUEST_B), model(*tiled), rtol=1e-12, atol=1e-12)
    merged = twin.merged_state()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=0)
    return report


def dense(*widths: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(7, width, dtype=torch.double) for width in widths]


def widths(report) -> list[tuple[int, int]]:
    return [(site.user_width, site.other_width) for site in report.sites if site.cut]


class Mlp(nn.Module):
    def __init__(self, *before: nn.Module, user: int = 5, item: int = 3, cross: int = 2) -> None:
        super().__init__()
        self.before = nn.Sequential(*before)
        self.first = nn.Linear(user + item + cross, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> Tensor:
        x = self.before(torch.cat([item, user, cross], dim=-1))
        return self.last(torch.relu(self.first(x)))


SIDES = ("user", "item", "cross")


def test_the_first_layer_is_cut_and_the_second_is_not():
    twin = twin_of(Mlp(), dense(5, 3, 2), SIDES)
    assert widths(twin) == [(5, 5)]


def test_batch_norm_folds_into_the_cut_weights():
    norm = nn.BatchNorm1d(10)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert widths(twin_of(Mlp(norm), dense(5, 3, 2), SIDES)) == [(5, 5)]


@pytest.mark.parametrize("before", [nn.Tanh(), nn.Sequential(nn.ReLU(), nn.Dropout(0.5))])
def test_what_works_number_by_number_goes_before_the_join(before):
    assert widths(twin_of(Mlp(before), dense(5, 3, 2), SIDES)) == [(5, 5)]


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_over_both_sides_goes_behind_the_cut_product(affine):
    norm = nn.LayerNorm(10, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    assert widths(twin_of(Mlp(norm), dense(5, 3, 2), SIDES)) == [(5, 5)]


class NormOfAll(nn.Module):
    """Large values close to each other: a variance from sums of squares would have no digits left."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(10), nn.Linear(10, 4), nn.Linear(10, 4, bias=False)

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> Tensor:
        x = self.norm(torch.cat([user, item, cross], dim=-1) + torch.arange(10.0).to(user) + 1e6)
        return self.first(x) + self.second(x) + torch.relu(x).sum(dim=-1, keepdim=True)


def test_layer_norm_that_others_read_too():
    model = NormOfAll().eval().double()
    inputs = dense(5, 3, 2)
    twin, report = reparameterise(model, [inputs[0][:1].expand(7, -1), *inputs[1:]], SIDES)
    with torch.no_grad():
        expected = model(inputs[0][:1].expand(7, -1), *inputs[1:])
        torch.testing.assert_close(twin(inputs[0][:1], *inputs[1:]), expected, rtol=1e-7, atol=1e-7)
    assert widths(report) == [(5, 5)] * 2


def test_softmax_over_the_columns_mixes_the_sides_and_must_not_fire():
    assert widths(twin_of(Mlp(nn.Softmax(dim=-1)), dense(5, 3, 2), SIDES)) == []


class Din(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(30, 4)
        self.first, self.second = nn.Linear(16, 6), nn.Linear(6, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        k, q = self.item(history), self.item(item)
        q = q.unsqueeze(1).expand(-1, k.shape[1], -1)
        scores = self.second(torch.sigmoid(self.first(torch.cat([q, k, q - k, q * k], dim=-1))))
        return (scores.softmax(dim=1) * k).sum(dim=1) @ torch.ones(4, dtype=k.dtype)


def test_din_multiplies_the_candidate_once_and_the_history_once_per_request():
    torch.manual_seed(0)
    twin = twin_of(Din(), [torch.randint(30, (7, 9)), torch.randint(30, (7,))], ("user", "item"))
    # q (W1 + W3) and (q * k) W4 beside k (W2 - W3).
    assert widths(twin) == [(4, 8)]


class Cross(nn.Module):
    """DCNv2: x0 * (W x + b) + x, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(10, 10) for _ in range(2))

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> Tensor:
        x = start = torch.cat([user, item, cross], dim=1)
        for layer in self.layers:
            x = start * layer(x) + x
        return x.sum(dim=1)


def test_the_first_cross_layer_is_cut():
    assert widths(twin_of(Cross(), dense(5, 3, 2), SIDES))[0] == (5, 5)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(10, 4) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(10, 3) for _ in range(2))

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([torch.cat([user, item], dim=-1), cross], dim=-1)
        outs = torch.stack([torch.relu(expert(x)) for expert in self.experts], dim=1)
        return tuple((gate(x).softmax(dim=-1).unsqueeze(-1) * outs).sum(dim=1) for gate in self.gates)


def test_experts_and_gates_are_all_cut():
    assert widths(twin_of(Experts(), dense(5, 3, 2), SIDES)) == [(5, 5)] * 5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(30, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        k, q = self.item(history), self.item(item).unsqueeze(1)
        return self.attention(q, k, k, need_weights=False)[0].sum(dim=(1, 2))


def test_cross_attention_is_equal():
    torch.manual_seed(0)
    twin_of(Attention(), [torch.randint(30, (7, 9)), torch.randint(30, (7,))], ("user", "item"))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ModelError, match=r"call eval\(\)"):
        reparameterise(Mlp(), dense(5, 3, 2), SIDES)


def test_an_unknown_side_is_refused():
    with pytest.raises(ModelError, match="expected one of user, item, cross, const for each of user, item"):
        reparameterise(Mlp().eval(), dense(5, 3, 2), ("users", "item", "cross"))


def test_an_example_of_several_users_is_refused():
    with pytest.raises(ModelError, match=r"input user .* its rows in the example differ"):
        reparameterise(Mlp().eval().double(), dense(5, 3, 2), SIDES)


@pytest.mark.parametrize("wrong", [{"pad_to": 0}, {"layout": "x"}])
def test_unknown_options_are_refused(wrong: dict):
    inputs = dense(5, 3, 2)
    with pytest.raises(ModelError, match="expected layout neat or keep, and pad_to of 1 or more"):
        reparameterise(Mlp().eval().double(), [inputs[0][:1].expand(7, -1), *inputs[1:]], SIDES, **wrong)


def test_a_call_with_the_wrong_rows_is_refused():
    inputs = dense(5, 3, 2)
    twin, _ = reparameterise(Mlp().eval().double(), [inputs[0][:1].expand(7, -1), *inputs[1:]], SIDES)
    with pytest.raises(ValueError, match="input item has 7 rows, but the request of 6 is given"):
        twin(*inputs, request_B=REQUEST_B[:6])
    with pytest.raises(ValueError, match="0 inputs; expected 3"):
        twin()
