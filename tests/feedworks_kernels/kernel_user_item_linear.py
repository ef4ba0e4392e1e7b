"""user_item_linear's Triton kernels against float64; test_user_item_linear_kernel.py starts this.

On CUDA, or with TRITON_INTERPRET=1 (it must stand before triton is imported) in the interpreter on the CPU.
"""

from __future__ import annotations

import importlib
import os

import pytest
import torch
import triton

from feedworks_kernels import user_item_linear, user_partial_linear
from feedworks_kernels.testing import assert_close, concatenated_linear, forced, poisoned_memory, random_layer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FLOATS = ("user_RU", "item_BI", "weight_user_NU", "weight_item_NI", "bias_N")
ACTIVATIONS = ("none", "relu", "sigmoid", "silu", "gelu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# B rows, R requests (0: one user, no index), U, I, N: whole tiles, ragged ones, several row blocks, tiny.
SHAPES = [
    (64, 0, 64, 64, 64),
    (150, 0, 70, 45, 40),
    (150, 3, 70, 45, 40),
    (130, 50, 24, 100, 63),
    (1, 0, 5, 3, 2),
    (70, 7, 600, 16, 8),
]
FORWARD = [
    *((dtype, shape, "gelu") for dtype in DTYPES for shape in SHAPES),
    *((dtype, shape, act) for dtype, shape in zip(DTYPES, SHAPES[1:4], strict=True) for act in ACTIVATIONS),
]
GRADIENTS = [
    *((dtype, shape, "silu") for dtype in DTYPES for shape in SHAPES[1:4]),
    *((dtype, shape, act) for dtype, shape in zip(DTYPES, SHAPES[1:4], strict=True) for act in ACTIVATIONS),
]
kernel = importlib.import_module("feedworks_kernels.user_item_linear.kernel")
gradient_module = importlib.import_module("feedworks_kernels.user_item_linear.gradient_kernel")


def layer_of(seed, *sizes, dtype=torch.float32):
    layer = random_layer(torch.Generator().manual_seed(seed), sizes, dtype)
    return {name: None if x is None else x.to(DEVICE) for name, x in layer.items()}


def as_double(layer):
    return {name: x.double() if name in FLOATS and x is not None else x for name, x in layer.items()}


@pytest.fixture(autouse=True)
def _triton():
    with forced("triton"):
        yield


def assert_error_at_most_twice(got, plain, exact):
    """The interpreter cuts bf16 off where it stores, which alone doubles the error."""
    limit = 2.8 if INTERPRETED and got.dtype == torch.bfloat16 else 2
    # One rounding; in fp32, where nothing else rounds, that of a sum of some hundred numbers.
    least = torch.finfo(got.dtype).eps * exact.norm() * (2 if got.dtype == torch.float32 else 0.5)
    assert (got.double() - exact).norm() <= limit * max((plain.double() - exact).norm(), least)


@pytest.mark.parametrize(("dtype", "shape", "activation"), FORWARD)
def test_forward(dtype, shape, activation):
    layer = layer_of(1, *shape, dtype=dtype)
    exact, plain = concatenated_linear(as_double(layer), activation), concatenated_linear(layer, activation)
    with poisoned_memory():
        got = user_item_linear(**layer, activation=activation)
    assert got.dtype == dtype
    assert_error_at_most_twice(got, plain, exact)


@pytest.mark.parametrize(("dtype", "shape", "activation"), GRADIENTS)
def test_gradients(dtype, shape, activation):
    layer = layer_of(2, *shape, dtype=dtype)
    double = as_double(layer)
    sum_BN = concatenated_linear(double, "none")
    # Around a kink rounding chooses the slope, in any form.
    weight_BN = torch.randn(sum_BN.shape, generator=torch.Generator().manual_seed(3)).to(sum_BN)
    weight_BN *= sum_BN.abs() > 0.05

    def gradients(arguments, run):
        floats = [arguments[name].detach().requires_grad_() for name in FLOATS]
        out = run(dict(zip(FLOATS, floats, strict=True)) | {"request_B": arguments["request_B"]})
        return torch.autograd.grad(out, floats, weight_BN.to(out.dtype))

    exact = gradients(double, lambda x: concatenated_linear(x, activation))
    plain = gradients(layer, lambda x: concatenated_linear(x, activation))
    got = gradients(layer, lambda x: user_item_linear(**x, activation=activation))
    for mine, theirs, true in zip(got, plain, exact, strict=True):
        assert_error_at_most_twice(mine, theirs, true)


@pytest.mark.parametrize("order", ["rising", "any"])
@pytest.mark.parametrize("num_requests", [1, 5, 40, 300])
def test_rows_add_up_by_request(order, num_requests):
    layer = layer_of(4, 200, num_requests, 4, 8, 16)
    if order == "any":
        layer["request_B"] = layer["request_B"].flip(0)[torch.randperm(200, device=DEVICE)]
    partial_RN = torch.randn(num_requests, 16, device=DEVICE, requires_grad=True)
    weight_BN = torch.randn(200, 16, device=DEVICE)
    out = user_partial_linear(partial_RN, layer["item_BI"], layer["weight_item_NI"], layer["request_B"])
    (got,) = torch.autograd.grad(out, partial_RN, weight_BN)
    expected = torch.zeros(num_requests, 16).double()
    expected.index_add_(0, layer["request_B"].cpu(), weight_BN.cpu().double())
    assert_close(got.cpu(), expected, torch.float32)


def test_ordered_sums_where_asked_for():
    layer = layer_of(5, 90, 9, 4, 8, 16)
    grad_BN = torch.randn(90, 16, device=DEVICE)
    arguments = (grad_BN, None, torch.zeros(9, 16, device=DEVICE), layer["item_BI"], layer["weight_item_NI"])
    free = kernel.gradient(*arguments, layer["request_B"], "silu")
    with poisoned_memory():  # by deterministic algorithms
        ordered = kernel.gradient(*arguments, layer["request_B"], "silu")
    for mine, theirs in zip(free, ordered, strict=True):
        assert_close(mine, theirs, torch.float32)


@pytest.mark.parametrize("num_requests", [1, 3, 9])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_product_with_the_user_is_fp32(num_requests, dtype, bias):
    layer = layer_of(6, 1, num_requests, 2100, 3, 21, dtype=dtype)
    arguments = [layer["user_RU"], layer["weight_user_NU"], layer["bias_N"] if bias else None]
    got = kernel.user_product(*arguments)
    assert got.dtype == torch.float32
    double = [None if x is None else x.double() for x in arguments]
    assert_close(got, torch.nn.functional.linear(*double), torch.float32)


@pytest.mark.parametrize(
    "shape", [(0, 0, 4, 3, 5), (0, 2, 4, 3, 5), (6, 2, 0, 3, 5), (6, 2, 4, 0, 5), (6, 0, 4, 3, 0)]
)
def test_empty(shape):
    layer = layer_of(7, *shape)
    out = user_item_linear(**layer, activation="silu")
    assert_close(out, concatenated_linear(as_double(layer), "silu"), torch.float32)
    floats = [layer[name].requires_grad_() for name in FLOATS]
    out = user_item_linear(**layer, activation="silu")
    for gradient, x in zip(torch.autograd.grad(out.sum(), floats), floats, strict=True):
        assert gradient.shape == x.shape
        assert gradient.isfinite().all()


def test_strides_do_not_matter():
    layer = layer_of(8, 90, 5, 12, 24, 33)
    expected = user_item_linear(**layer, activation="gelu")
    for name in FLOATS[:4]:
        wide = torch.full((layer[name].shape[0], layer[name].shape[1] + 5), torch.nan, device=DEVICE)
        wide[:, 3:-2] = layer[name]
        for strided in (wide[:, 3:-2], layer[name].T.contiguous().T):
            assert_close(
                user_item_linear(**layer | {name: strided}, activation="gelu"), expected, torch.float32
            )
    every_other = torch.stack([layer["request_B"], layer["request_B"] * 0 - 7], dim=1)[:, 0]
    assert torch.equal(user_item_linear(**layer | {"request_B": every_other}, activation="gelu"), expected)


def test_a_request_that_is_not_there_gives_nan_and_no_gradient():
    layer = layer_of(9, 6, 3, 4, 3, 5)
    layer["request_B"] = torch.tensor([0, 3, -1, 2, 2**40, 1], device=DEVICE)
    out = user_item_linear(**layer, activation="relu")
    assert out.isnan().any(dim=1).tolist() == [False, True, True, False, True, False]
    ones = torch.ones(6, 5, device=DEVICE)
    partial_RN = torch.zeros(3, 5, device=DEVICE)
    _, got = kernel.gradient(
        ones, None, partial_RN, layer["item_BI"], layer["weight_item_NI"], layer["request_B"], "none"
    )
    assert got.tolist() == [[1.0] * 5] * 3


def test_nan_goes_through():
    layer = layer_of(10, 20, 0, 4, 8, 5)
    layer["item_BI"][3, 2] = torch.nan
    for activation in ACTIVATIONS:
        out = user_item_linear(**layer, activation=activation)
        assert out.isnan().all(dim=1).nonzero().flatten().tolist() == [3]


@pytest.mark.skipif(not INTERPRETED, reason="CUDA has tuned in every test before")
@pytest.mark.parametrize("num_requests", [0, 3])
def test_tuning(monkeypatch, num_requests):
    """The tuner runs every tile that fits, on the same outputs; here without clocks, which need a GPU."""
    assert len(kernel.tile_configs()) == 1
    tried = []

    def without_clock(call, quantiles):
        call()
        tried.append(call)
        return [1.0 / len(tried)] * 3

    for module, name in ((kernel, "forward_kernel"), (gradient_module, "gradient_kernel")):
        tuner = getattr(module, name)
        tuned = triton.autotune(
            configs=kernel.tile_configs(interpreted=False),
            key=tuner.keys,
            prune_configs_by={"early_config_prune": tuner.early_config_prune},
            reset_to_zero=tuner.reset_to_zero,
            do_bench=without_clock,
        )(tuner.fn)
        monkeypatch.setattr(module, name, tuned)
    layer = layer_of(11, 150, num_requests, 4, 40, 100)
    floats = [layer[name].requires_grad_() for name in FLOATS]
    out = user_item_linear(**layer, activation="silu")
    forward_tried = len(tried)
    got = torch.autograd.grad(out.square().sum(), floats)
    double = {
        name: x.detach().double().requires_grad_() if name in FLOATS else x for name, x in layer.items()
    }
    expected = torch.autograd.grad(
        concatenated_linear(double, "silu").square().sum(), [double[name] for name in FLOATS]
    )
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert 3 <= forward_tried < len(tried)
