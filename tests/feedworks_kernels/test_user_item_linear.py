"""user_item_linear: every form against the layer over the concatenation, gradients, export, bad input."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library, nn

from feedworks_kernels import user_item_linear, user_partial_linear
from feedworks_kernels.testing import (
    TOLERANCE,
    assert_close,
    concatenated_linear,
    forced,
    poisoned_memory,
    random_layer,
)

eager = importlib.import_module("feedworks_kernels.user_item_linear.eager")
registration = importlib.import_module("feedworks_kernels.user_item_linear.registration")
FORMS = ("reference", "eager")
ACTIVATIONS = ("none", "relu", "sigmoid", "silu", "gelu")
FLOATS = ("user_RU", "item_BI", "weight_user_NU", "weight_item_NI", "bias_N")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def layer_of(seed, *sizes, dtype=torch.float64):
    return random_layer(torch.Generator().manual_seed(seed), sizes, dtype)


def as_double(layer):
    return {name: x.double() if name in FLOATS and x is not None else x for name, x in layer.items()}


@pytest.mark.parametrize("form", FORMS)
def test_hand_worked(form):
    layer = {
        "user_RU": torch.tensor([[1.0], [10.0]]),
        "item_BI": torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]),
        "weight_user_NU": torch.tensor([[2.0], [-1.0]]),
        "weight_item_NI": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "bias_N": torch.tensor([0.5, 0.0]),
    }
    with forced(form):
        out = user_item_linear(**layer, request_B=torch.tensor([1, 0, 0]), activation="relu")
        alone = user_item_linear(**layer | {"user_RU": torch.tensor([[1.0]])})
    assert out.tolist() == [[21.5, 0.0], [5.5, 6.0], [2.5, 0.0]]
    assert alone.tolist() == [[3.5, 2.0], [5.5, 6.0], [2.5, -1.0]]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.sampled_from([0, 1, 2, 63, 100, 500]),
    num_requests=st.sampled_from([0, 1, 2, 7, 40]),
    user_width=st.sampled_from([0, 1, 17, 64]),
    item_width=st.sampled_from([0, 1, 17, 64]),
    num_outputs=st.sampled_from([0, 1, 5, 63, 100]),
    activation=st.sampled_from(ACTIVATIONS),
    form=st.sampled_from(FORMS),
    bias=st.booleans(),
    int32=st.booleans(),
)
def test_equals_the_layer_over_the_concatenation(
    seed, num_rows, num_requests, user_width, item_width, num_outputs, activation, form, bias, int32
):
    layer = layer_of(seed, num_rows, num_requests, user_width, item_width, num_outputs)
    if not bias:
        layer["bias_N"] = None
    if int32 and num_requests:
        layer["request_B"] = layer["request_B"].int()
    expected = concatenated_linear(layer, activation)
    with forced(form), poisoned_memory():
        assert_close(user_item_linear(**layer, activation=activation), expected, torch.float64)


def test_no_requests_and_no_rows():
    layer = layer_of(1, 0, 1, 4, 3, 5)
    layer["user_RU"] = layer["user_RU"][:0]
    for form in FORMS:
        with forced(form):
            assert user_item_linear(**layer).shape == (0, 5)


@pytest.mark.parametrize("way", ["addmm", "onednn"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_requests", [0, 6])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_is_at_most_twice_the_plain_expressions(monkeypatch, way, dtype, num_requests, activation):
    monkeypatch.setattr(eager, "_MANY_FLOP", {"addmm": 10**18, "onednn": 0}[way])
    layer = layer_of(2, 300, num_requests, 200, 40, 64, dtype=dtype)
    exact = concatenated_linear(as_double(layer), activation)
    plain = concatenated_linear(layer, activation)
    got = user_item_linear(**layer, activation=activation)
    assert got.dtype == dtype

    def error(x):
        return float((x.double() - exact).norm())

    assert error(got) <= 2 * error(plain)
    assert float((got.double() - exact).abs().max()) <= 2 * float((plain.double() - exact).abs().max())


@pytest.mark.parametrize("num_requests", [0, 3])
@pytest.mark.parametrize("way", ["addmm", "onednn"])
@pytest.mark.parametrize("threads", [1, 2])
def test_both_products_of_the_cpu_agree(monkeypatch, num_requests, way, threads):
    monkeypatch.setattr(eager, "_MANY_FLOP", {"addmm": 10**18, "onednn": 0}[way])
    calls = []
    onednn = eager._onednn
    monkeypatch.setattr(eager, "_onednn", lambda *a: calls.append(1) or onednn(*a))
    layer = layer_of(3, 130, num_requests, 30, 20, 50, dtype=torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for activation in ACTIVATIONS:
            expected = concatenated_linear(as_double(layer), activation)
            assert_close(user_item_linear(**layer, activation=activation), expected, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert bool(calls) == (way == "onednn")


def test_strides_do_not_matter():
    layer = layer_of(4, 90, 5, 12, 24, 33, dtype=torch.float32)
    expected = user_item_linear(**layer, activation="silu")
    for name in FLOATS[:4]:
        wide = torch.full((layer[name].shape[0], layer[name].shape[1] + 5), torch.nan)
        wide[:, 3:-2] = layer[name]
        for strided in (wide[:, 3:-2], layer[name].T.contiguous().T):
            assert_close(
                user_item_linear(**layer | {name: strided}, activation="silu"), expected, torch.float32
            )


@pytest.mark.parametrize("num_requests", [0, 4])
def test_layers_share_one_product_with_the_user(num_requests):
    layer = layer_of(5, 50, num_requests, 20, 10, 24, dtype=torch.float32)
    partial_RN = layer["user_RU"] @ layer["weight_user_NU"].T + layer["bias_N"]
    whole = user_item_linear(**layer, activation="relu")
    parts = [
        user_partial_linear(
            partial_RN[:, low : low + 8],
            layer["item_BI"],
            layer["weight_item_NI"][low : low + 8],
            layer["request_B"],
            activation="relu",
        )
        for low in (0, 8, 16)
    ]
    assert_close(torch.cat(parts, dim=1), whole, torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_partial_sums_of_fp32_for_bf16_rows(form):
    layer = layer_of(6, 50, 4, 20, 10, 24, dtype=torch.bfloat16)
    partial_RN = layer["user_RU"].float() @ layer["weight_user_NU"].float().T + layer["bias_N"].float()
    with forced(form):
        out = user_partial_linear(partial_RN, layer["item_BI"], layer["weight_item_NI"], layer["request_B"])
    assert out.dtype == torch.bfloat16
    assert_close(out.double(), concatenated_linear(as_double(layer), "none"), torch.bfloat16)


def through_the_operator(user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation):
    return registration.user_item_linear(
        user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation
    )


def directly(user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation):
    return user_item_linear(
        user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation=activation
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", [directly, through_the_operator])
@pytest.mark.parametrize("num_requests", [0, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(form, run, num_requests, activation):
    layer = layer_of(7, 9, num_requests, 4, 3, 5)
    arguments = [layer[name].requires_grad_() for name in FLOATS]
    with forced(form):
        assert torch.autograd.gradcheck(
            lambda *floats: run(*floats, layer["request_B"], activation),
            arguments,
            check_undefined_grad=False,
        )
        if run is directly:
            assert torch.autograd.gradgradcheck(
                lambda *floats: run(*floats, layer["request_B"], activation), arguments
            )


@pytest.mark.parametrize("num_requests", [0, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("without", FLOATS)
def test_partial_operator_differentiates_what_is_asked_for(num_requests, activation, without):
    layer = layer_of(8, 9, num_requests, 4, 3, 5)
    for name in FLOATS:
        layer[name].requires_grad_(name != without)
    partial_RN = nn.functional.linear(layer["user_RU"], layer["weight_user_NU"], layer["bias_N"])
    out = registration.user_partial_linear(
        partial_RN, layer["item_BI"], layer["weight_item_NI"], layer["request_B"], activation
    )
    asked = [layer[name] for name in FLOATS if name != without]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
    got = torch.autograd.grad((out * weight).sum(), asked)
    expected = torch.autograd.grad((concatenated_linear(layer, activation) * weight).sum(), asked)
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, torch.float64)


class Layer(nn.Module):
    """Two products that share the request index."""

    def __init__(self, activation):
        super().__init__()
        layer = layer_of(9, 1, 0, 6, 4, 5, dtype=torch.float32)
        self.user, self.item = nn.Parameter(layer["weight_user_NU"]), nn.Parameter(layer["weight_item_NI"])
        self.bias, self.activation = nn.Parameter(layer["bias_N"]), activation

    def forward(self, user, item, request=None):
        one = user_item_linear(
            user, item, self.user, self.item, self.bias, request, activation=self.activation
        )
        partial = nn.functional.linear(user, self.user, self.bias)
        return one + user_partial_linear(partial, item, self.item, request, activation=self.activation)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_export_keeps_one_node(strict, several, tmp_path):
    rows, requests = torch.export.Dim("rows"), torch.export.Dim("requests")
    module = Layer("gelu").eval()
    inputs = (torch.randn(3, 6), torch.randn(7, 4), torch.tensor([0, 1, 2, 2, 1, 0, 0]))
    shapes = ({0: requests}, {0: rows}, {0: rows})
    if not several:
        inputs, shapes = (inputs[0][:1], inputs[1]), (None, {0: rows})
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
        decomposed = program.run_decompositions({})
    names = [str(node.target) for node in decomposed.graph.nodes if node.op == "call_function"]
    assert names.count("feedworks.user_item_linear.default") == 1
    assert names.count("feedworks.user_partial_linear.default") == 1
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    many = (torch.randn(1 if not several else 4, 6), torch.randn(20, 4), torch.randint(0, 4, (20,)))
    many = many if several else many[:2]
    with torch.no_grad():
        assert_close(loaded(*many), module(*many), torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_gradients(activation):
    module, request = Layer(activation), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    user, item = torch.randn(3, 6, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    arguments = (user, item, *module.parameters())
    expected = torch.autograd.grad(module(user, item, request).square().sum(), arguments)
    got = torch.autograd.grad(compiled(user, item, request).square().sum(), arguments)
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, torch.float32)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_operators_keep_torchs_rules(activation):
    layer = layer_of(10, 8, 2, 4, 3, 5, dtype=torch.float32)
    floats = [layer[name].requires_grad_() for name in FLOATS]
    library.opcheck(registration.user_item_linear, (*floats, layer["request_B"], activation))
    partial_RN = nn.functional.linear(floats[0], floats[2], floats[4]).detach().requires_grad_()
    library.opcheck(
        registration.user_partial_linear, (partial_RN, floats[1], floats[3], layer["request_B"], activation)
    )
    grad = torch.ones(8, 5)
    library.opcheck(
        registration.user_partial_linear_gradient,
        (
            grad,
            grad,
            *(x.detach() for x in (partial_RN, floats[1], floats[3])),
            layer["request_B"],
            activation,
        ),
    )


def test_tolerances_bite():
    layer = layer_of(11, 30, 2, 8, 8, 8, dtype=torch.float32)
    wrong = layer | {"request_B": 1 - layer["request_B"]}
    with pytest.raises(AssertionError):
        assert_close(user_item_linear(**wrong), concatenated_linear(layer, "none"), torch.float32)
    assert TOLERANCE[torch.float32] <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_BI": torch.zeros(7)}, r"item: expected float \(B, I\)"),
        ({"item_BI": torch.zeros(7, 4).long()}, r"item: expected float \(B, I\)"),
        ({"item_BI": torch.zeros(7, 3)}, r"weight_item: expected torch.float32 \(N, I\) = \(5, 3\)"),
        ({"user_RU": torch.zeros(3, 7)}, r"weight_user: expected torch.float32 \(N, U\) = \(5, 7\)"),
        ({"user_RU": torch.zeros(3, 6).double()}, r"user: expected torch.float32 \(R, U\) like item"),
        ({"user_RU": torch.zeros(6)}, "user: expected"),
        ({"weight_user_NU": torch.zeros(4, 6)}, "weight_user: expected"),
        ({"weight_item_NI": torch.zeros(5, 4).half()}, "weight_item: expected"),
        ({"weight_item_NI": torch.tensor(1.0)}, "weight_item: expected"),
        ({"bias_N": torch.zeros(4)}, r"bias: expected torch.float32 \(5,\)"),
        ({"bias_N": torch.zeros(1, 5)}, r"bias: expected"),
        ({"request_B": None}, "request: 3 user rows need the row of each candidate"),
        ({"request_B": torch.zeros(6).long()}, r"request: expected int32 or int64 \(7,\)"),
        ({"request_B": torch.zeros(7)}, "request: expected int32 or int64"),
        ({"request_B": torch.tensor([0, 1, 2, 3, 0, 0, 0])}, r"request\[3\] = 3: expected 0 \.\. 2"),
        ({"request_B": torch.tensor([0, 1, -1, 2, 0, 0, 0])}, r"request\[2\] = -1: expected 0 \.\. 2"),
        ({"weight_user_NU": torch.zeros(5, 6, device="meta")}, "weight_user lies on meta and item on cpu"),
        ({"activation": "swish"}, "activation: expected one of none, relu, sigmoid, silu, gelu"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_bad_input_is_named(change, message, form):
    layer = layer_of(12, 7, 3, 6, 4, 5, dtype=torch.float32)
    with forced(form):
        assert user_item_linear(**layer).shape == (7, 5)
        with pytest.raises(ValueError, match=message):
            user_item_linear(**layer | change)


def test_partial_sums_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"partial: expected torch.float32 \(R, 5\), got"):
        user_partial_linear(torch.zeros(1, 4), torch.zeros(7, 2), torch.zeros(5, 2))
