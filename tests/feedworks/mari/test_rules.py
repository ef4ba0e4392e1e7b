"""The sites of a ranking model beyond the first layer: each is found, and the twin is equal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feedworks.mari.convert import reparameterise

from .test_convert import REQUEST_B, SIDES, dense, twin_of

USER_ITEM = ("user", "item")


def kinds(report) -> list[str]:
    return [site.kind for site in report.sites]


def of_one_user(inputs: list[Tensor]) -> list[Tensor]:
    return [inputs[0][:1].expand_as(inputs[0]), *inputs[1:]]


class Of(nn.Module):
    """A function of layers and inputs as a model."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*self.layers, *inputs)


class OfTwo(Of):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.function(*self.layers, user, item)


class OfThree(Of):
    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> Tensor:
        return self.function(*self.layers, user, item, cross)


def ids(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randint(30, (7, *shape)) for shape in shapes]


def _fields(embedding, user, item):
    """Embeddings of 3 user and 2 item fields, in turns, as `(B, 5, 4)`."""
    u, i = embedding(user), embedding(item)
    return torch.cat([u[:, :2], i[:, :1], u[:, 2:], i[:, 1:]], dim=1)


def _fm(embedding, user, item):
    x = _fields(embedding, user, item)
    return 0.5 * (x.sum(dim=1) ** 2 - (x**2).sum(dim=1)).sum(dim=1, keepdim=True)


def _fm_of_products(embedding, user, item):
    x = _fields(embedding, user, item)
    square = torch.pow(torch.sum(x, dim=1, keepdim=True), 2)
    return 0.5 * torch.sum(square - torch.sum(x * x, dim=1, keepdim=True), dim=2)


@pytest.mark.parametrize("fm", [_fm, _fm_of_products])
def test_the_users_fields_of_a_factorisation_machine_are_summed_once_per_request(fm):
    report = twin_of(OfTwo(fm, nn.Embedding(30, 4)), ids((3,), (2,)), USER_ITEM)
    sums = [site for site in report.sites if site.kind == "sum"]
    assert [(site.user_width, site.other_width) for site in sums[:2]] == [(3, 2)] * 2


def test_fields_along_another_axis_flatten_into_columns():
    def deep(embedding, first, user, item):
        return torch.relu(first(_fields(embedding, user, item).flatten(1)))

    report = twin_of(OfTwo(deep, nn.Embedding(30, 4), nn.Linear(20, 6)), ids((3,), (2,)), USER_ITEM)
    (site,) = report.sites
    assert (site.kind, site.user_width, site.other_width) == ("linear", 12, 8)
    assert site.helped == ("flatten",)


def test_numbers_of_both_sides_joined_before_one_look_up():
    def offsets(embedding, first, user, item):
        x = torch.cat([user, item], dim=1) + torch.tensor([0, 1, 2, 3, 4])
        return first(embedding(x).reshape(x.shape[0], -1))

    report = twin_of(OfTwo(offsets, nn.Embedding(40, 4), nn.Linear(20, 6)), ids((3,), (2,)), USER_ITEM)
    assert [(site.user_width, site.other_width) for site in report.sites] == [(12, 8)]


def test_parts_along_fields_go_through_layers_one_by_one():
    def towers(embedding, norm, inner, first, user, item):
        x = torch.tanh(inner(norm(_fields(embedding, user, item))))
        x = x.unsqueeze(1).expand(-1, 2, -1, -1).transpose(2, 3).softmax(dim=2).sum(dim=3)
        x = torch.stack([x.reshape(x.shape[0], -1)[:, :3], x.mean(dim=2)[:, :1].expand(-1, 3)], dim=1)
        return first(x)

    layers = nn.Embedding(30, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 2)
    report = twin_of(OfTwo(towers, *layers), ids((3,), (2,)), USER_ITEM)
    assert "user_only" in kinds(report)
    assert "sum" in kinds(report)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_selected_and_split_fields_are_of_their_own_side(place):
    def selected(embedding, first, user, item):
        x = _fields(embedding, user, item)
        one, *_, other = x.split(1, dim=1)
        left, right = x.split([2, 3], dim=1)
        y = torch.cat([x[:, place], one.squeeze(1), other.squeeze(1), x[:, 1:4].sum(dim=1)], dim=-1)
        return first(y) + left.sum() * 0 + right.mean(dim=(1, 2)).unsqueeze(-1)

    report = twin_of(OfTwo(selected, nn.Embedding(30, 4), nn.Linear(16, 2)), ids((3,), (2,)), USER_ITEM)
    assert any(site.cut for site in report.sites)


def test_stacked_vectors_of_both_sides():
    def stacked(inner, first, user, item):
        x = torch.relu(inner(torch.stack([user, item, user * 2], dim=1)))
        return first(x.flatten(1))

    report = twin_of(OfTwo(stacked, nn.Linear(4, 3), nn.Linear(9, 2)), dense(4, 4), USER_ITEM)
    assert [(s.kind, s.user_width, s.other_width) for s in report.sites if s.cut] == [("linear", 6, 3)]


def test_experts_and_gates_share_one_product():
    def mixture(one, two, gate, user, item, cross):
        x = torch.cat([user, item, cross], dim=-1)
        experts = torch.stack([torch.relu(one(x)), torch.relu(two(x))], dim=1)
        return (gate(x).softmax(dim=-1).unsqueeze(-1) * experts).sum(dim=1)

    layers = nn.Linear(10, 4), nn.Linear(10, 4, bias=False), nn.Linear(10, 2)
    model = OfThree(mixture, *layers)
    report = twin_of(model, dense(5, 3, 2), SIDES)
    assert [(site.outputs, site.shared) for site in report.sites] == [
        (4, "linear"),
        (4, "linear"),
        (2, "linear"),
    ]
    twin = reparameterise(model, of_one_user(dense(5, 3, 2)), SIDES).twin
    products = [node.meta["val"].shape for node in twin.programs[0].graph.nodes if node.target in PRODUCTS]
    assert [tuple(shape) for shape in products if shape[0] == 1] == [(1, 10)]


PRODUCTS = (torch.ops.aten.linear.default, torch.ops.aten.addmm.default)


def test_a_weight_used_twice_on_one_input_and_on_its_own_output():
    def shared(layer, user, item):
        x = torch.cat([user, item], dim=-1)
        return layer(torch.relu(layer(x))) + layer(x) + x

    report = twin_of(OfTwo(shared, nn.Linear(8, 8)), dense(5, 3), USER_ITEM)
    assert [site.cut for site in report.sites] == [True, True]
    assert [refusal.kind for refusal in report.refusals] == ["non-linearity"]


def _heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)


def _by_hand(embedding, q, k, v, user, item):
    keys, queries = embedding(user), embedding(item).unsqueeze(1)
    scores = _heads(q(queries)) @ _heads(k(keys)).transpose(-1, -2) / 2
    return (scores.softmax(dim=-1) @ _heads(v(keys))).transpose(1, 2).flatten(1)


def _masked(embedding, q, k, v, user, item):
    keys, queries = embedding(user), embedding(item).unsqueeze(1)
    mask = (user != 3)[:, None, None, :]
    out = F.scaled_dot_product_attention(_heads(q(queries)), _heads(k(keys)), _heads(v(keys)), mask)
    return out.transpose(1, 2).flatten(1)


def _turned(embedding, q, k, v, user, item):
    keys, queries = k(embedding(user)), q(embedding(item)).unsqueeze(1)
    weights = torch.bmm(keys, queries.transpose(1, 2)).softmax(dim=1)
    return torch.bmm(weights.transpose(1, 2), v(embedding(user))).squeeze(1)


@pytest.mark.parametrize("attention", [_by_hand, _masked, _turned])
def test_attention_does_not_repeat_the_users_keys_and_values(attention):
    layers = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    model = OfTwo(attention, *layers)
    report = twin_of(model, ids((9,), ()), USER_ITEM)
    assert "attention" in kinds(report)
    assert kinds(report).count("user_only") == 2
    # Nowhere in the twin does a tensor stand that has all keys for all candidates.
    graph = reparameterise(model, of_one_user(ids((9,), ())), USER_ITEM).twin.programs[0].graph
    shapes = [tuple(getattr(node.meta.get("val"), "shape", ())) for node in graph.nodes]
    assert not any(not isinstance(shape[0], int) and 9 in shape and 8 in shape for shape in shapes if shape)


class OneRow(nn.Module):
    """Gets the user once and repeats it itself, as serving stacks export it."""

    def __init__(self, repeat) -> None:
        super().__init__()
        self.repeat, self.tower, self.first = repeat, nn.Linear(5, 4), nn.Linear(7, 2)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        user = torch.tanh(self.tower(user))
        return torch.relu(self.first(torch.cat([item, self.repeat(user, item.shape[0])], dim=1)))


@pytest.mark.parametrize(
    "repeat",
    [
        lambda user, rows: user.expand(rows, -1),
        lambda user, rows: user.repeat(rows, 1),
        lambda user, rows: user.repeat_interleave(rows, dim=0),
        lambda user, rows: torch.tile(user, (rows, 1)),
    ],
    ids=["expand", "repeat", "repeat_interleave", "tile"],
)
def test_a_model_that_repeats_the_user_itself(repeat):
    model = OneRow(repeat).eval().double()
    user, item = dense(5, 3)
    twin, report = reparameterise(model, [user[:1], item], USER_ITEM)
    assert [site.cut for site in report.sites] == [True]
    with torch.no_grad():
        torch.testing.assert_close(twin(user[:1], item), model(user[:1], item), rtol=1e-12, atol=1e-12)
        each = [model(user[r : r + 1], item)[b] for b, r in enumerate(REQUEST_B.tolist())]
        several = twin(user[:3], item, request_B=REQUEST_B)
        torch.testing.assert_close(several, torch.stack(each), rtol=1e-12, atol=1e-12)


def test_a_twin_has_nothing_left_to_cut():
    def deep(first, second, user, item, cross):
        x = torch.cat([user, item, cross], dim=-1)
        return second(torch.relu(first(x)) * torch.sigmoid(x.sum(dim=-1, keepdim=True)))

    model = OfThree(deep, nn.Linear(10, 4), nn.Linear(4, 1)).eval().double()
    inputs = dense(5, 3, 2)
    twin, report = reparameterise(model, of_one_user(inputs), SIDES)
    assert any(site.cut for site in report.sites)
    again, second = reparameterise(twin.programs[0], [inputs[0][:1], *inputs[1:]], SIDES)
    assert second.sites == ()
    given = [inputs[0][:1], *inputs[1:]]
    with torch.no_grad():
        torch.testing.assert_close(again(*given), twin(*given), rtol=0, atol=0)


@pytest.mark.parametrize(
    "times",
    [
        lambda x, w: torch.einsum("bd,nd->bn", x, w),
        lambda x, w: torch.einsum("nd,bd->bn", w, x),
        lambda x, w: torch.tensordot(x, w, dims=([1], [1])),
        lambda x, w: x @ w.t(),
        lambda x, w: torch.mm(x, w.t()),
        lambda x, w: torch.addmm(w[:, 0], x, w.t()),
        lambda x, w: (w @ x.unsqueeze(2)).squeeze(2),
        lambda x, w: torch.tensordot(x.unsqueeze(2), w, dims=([1], [1])).squeeze(1),
    ],
    ids=["einsum", "einsum_turned", "tensordot", "matmul", "mm", "addmm", "column", "tensordot_column"],
)
def test_a_product_in_other_words(times):
    def product(layer, user, item):
        return torch.relu(times(torch.cat([user, item], dim=1), layer.weight))

    report = twin_of(OfTwo(product, nn.Linear(8, 4, bias=False)), dense(5, 3), USER_ITEM)
    assert [(site.user_width, site.other_width) for site in report.sites] == [(5, 3)]


def test_cross_layers_of_column_vectors():
    """DCN as some write it: `x0 * (W x + b) + x` on `(B, D, 1)`."""

    def cross(one, two, user, item):
        start = torch.cat([user, item], dim=1).unsqueeze(2)
        x = start
        for layer in (one, two):
            x = start * (torch.matmul(layer.weight, x) + layer.bias.unsqueeze(1)) + x
        return torch.squeeze(x, dim=2)

    report = twin_of(OfTwo(cross, nn.Linear(8, 8), nn.Linear(8, 8)), dense(5, 3), USER_ITEM)
    # The second layer reads x0 * (W x0 + b) + x0, in which both are everywhere.
    assert [(site.user_width, site.other_width) for site in report.sites] == [(5, 3)]


def test_a_sequence_folded_into_the_rows():
    """Target attention on `(B * T, D)` with BatchNorm between, then back."""

    def folded(embedding, first, norm, second, history, item):
        k, q = embedding(history), embedding(item).unsqueeze(1).expand(-1, history.shape[1], -1)
        x = torch.cat([q, k, q - k, q * k], dim=-1).view(-1, 16)
        weights = second(torch.sigmoid(norm(first(x)))).view(-1, history.shape[1])
        return (weights.unsqueeze(-1) * k).sum(dim=1)

    norm = nn.BatchNorm1d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = OfTwo(folded, nn.Embedding(30, 4), nn.Linear(16, 6), norm, nn.Linear(6, 1))
    report = twin_of(model, ids((9,), ()), USER_ITEM)
    assert [(s.user_width, s.other_width, s.positions) for s in report.sites if s.cut] == [(4, 8, 9)]


def test_sums_over_columns_and_constants_of_one_row_per_candidate():
    def linear_part(user, item):
        logit = item.new_zeros(item.shape[0], 1)
        logit = logit + torch.cat([user, item], dim=-1).sum(dim=-1, keepdim=True)
        mean = torch.cat([user.unsqueeze(1), item.unsqueeze(1)], dim=-1).mean(dim=-1)
        places = torch.arange(5).repeat(user.shape[0], 1)
        return logit + mean + torch.where(places < 3, user, torch.zeros_like(user)).sum(dim=1, keepdim=True)

    report = twin_of(OfTwo(linear_part), dense(5, 3), USER_ITEM)
    assert kinds(report) == ["sum", "sum"]


def test_gates_of_the_item_on_all_columns():
    """PPNet: a gate from an item's number and the layer's input, which multiplies the layer's output."""

    def gated(embedding, gate, first, user, item):
        own = embedding(item)
        x = torch.cat([user, own], dim=-1)
        return torch.relu(first(x)) * 2 * torch.sigmoid(gate(torch.cat([own, x.detach()], dim=-1)))

    model = OfTwo(gated, nn.Embedding(30, 4), nn.Linear(13, 6), nn.Linear(9, 6))
    report = twin_of(model, [*dense(5), *ids(())], USER_ITEM)
    # The item stands twice in the gate's input, and is multiplied once.
    assert sorted((site.user_width, site.other_width, site.width) for site in report.sites) == [
        (5, 4, 9),
        (5, 4, 13),
    ]


def test_columns_of_one_wide_tensor_go_back_to_their_sides():
    def wide(embedding, first, user, item):
        x = torch.cat([user, item.to(user.dtype)], dim=-1)
        numbers = embedding(x[:, 5:6].long()).squeeze(1)
        return first(torch.cat([x[:, :5], numbers, torch.tanh(x[:, 1:3])], dim=-1))

    model = OfTwo(wide, nn.Embedding(30, 4), nn.Linear(11, 3))
    report = twin_of(model, [*dense(5), *ids((1,))], USER_ITEM)
    assert [(site.user_width, site.other_width) for site in report.sites] == [(7, 4)]


def test_bags_of_the_users_words_are_summed_once_per_request():
    def bags(bag, first, user, item):
        return first(torch.cat([bag(user), bag(item)], dim=1))

    model = OfTwo(bags, nn.EmbeddingBag(30, 4, mode="mean"), nn.Linear(8, 3))
    report = twin_of(model, ids((6,), (2,)), USER_ITEM)
    assert [(site.user_width, site.other_width) for site in report.sites] == [(4, 4)]


@pytest.mark.parametrize(
    "pool",
    [
        lambda q, k: ((k * q).sum(dim=2, keepdim=True).softmax(dim=1) * k).sum(dim=1),
        lambda q, k: (q * k).sum(dim=-1),
        lambda q, k: (torch.tanh(k @ q.transpose(1, 2)) * k).sum(dim=1, keepdim=True).flatten(1),
        lambda q, k: (q * k).sum(dim=1),
        lambda q, k: ((q * k).sum(dim=2, keepdim=True) * k).sum(dim=2),
        lambda q, k: (q * k).sum(dim=(1, 2)).unsqueeze(1) + torch.relu(q * k).sum(dim=2),
    ],
)
def test_a_candidates_weights_times_the_users_history_are_a_product(pool):
    def pooled(embedding, user, item):
        return pool(embedding(item).unsqueeze(1), embedding(user))

    report = twin_of(OfTwo(pooled, nn.Embedding(30, 4)), ids((9,), ()), USER_ITEM)
    assert "attention" in kinds(report) or "relu" in pool.__code__.co_names


def test_a_joined_user_that_is_read_at_one_row_per_request_and_over_all_rows():
    def both(user, item):
        x = torch.cat([user, user * 2], dim=1)
        return torch.tanh(x).softmax(dim=0) + x.softmax(dim=0) - x[:1] + item.sum(dim=1, keepdim=True)

    twin_of(OfTwo(both), dense(5, 3), USER_ITEM)
