"""user_item_linear's Triton kernels: in the interpreter, on a GPU, and as machine code for an H100."""

from __future__ import annotations

import importlib

import pytest
import torch

from feedworks_kernels.machine_code import compile_for_gpu

from .cases import run_cases

triton = pytest.importorskip("triton")
kernel = importlib.import_module("feedworks_kernels.user_item_linear.kernel")
gradient_kernel = importlib.import_module("feedworks_kernels.user_item_linear.gradient_kernel")
tiles_kernel = importlib.import_module("feedworks_kernels.user_item_linear.tiles_kernel")
SIZES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def test_in_the_interpreter():
    assert run_cases("user_item_linear", interpreted=True) > 80


@pytest.mark.gpu
def test_on_the_gpu():
    assert run_cases("user_item_linear", interpreted=False) > 80


def widths(stride=400):
    return {"N": 256, "I": 400, "ITEM_STRIDE": stride, "WEIGHT_STRIDE": stride, "PARTIAL_STRIDE": 256}


def compiled(function, pointers, constants, config):
    integers = tuple({"num_rows", "num_requests", "tuned_rows"} & set(function.arg_names))
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **tiles_kernel.OPTIONS}
    return compile_for_gpu(function, pointers, constants | config.kwargs, integers=integers, **options)


def forward(dtype, config, several, activation, stride=400, precision="tf32"):
    """Compile the forward kernel with one size of tile."""
    floats = f"*{SIZES[dtype]}"
    pointers = {"item_ptr": floats, "weight_ptr": floats, "partial_ptr": "*fp32", "out_ptr": floats}
    pointers |= {"request_ptr": "*i64"} if several else {}
    options = {"SEVERAL": several, "ACTIVATION": activation, "PRECISION": precision, "UPCAST": False}
    return compiled(kernel.forward_kernel.fn, pointers, widths(stride) | options, config)


def gradient(dtype, config, several, activation):
    """Compile the gradient kernel with one size of tile."""
    floats = f"*{SIZES[dtype]}"
    names = ("item_ptr", "weight_ptr", "grad_ptr", "out_ptr", "grad_mixed_ptr")
    pointers = dict.fromkeys(names, floats) | {"partial_ptr": "*fp32", "grad_partial_ptr": "*fp32"}
    pointers |= {"request_ptr": "*i64"} if several else {}
    options = {"SEVERAL": several, "ACTIVATION": activation, "PRECISION": "tf32", "UPCAST": False}
    options |= {"RECOMPUTE": activation in ("silu", "gelu")}
    return compiled(gradient_kernel.gradient_kernel.fn, pointers, widths() | options, config)


def assert_fast(machine, tensor_cores):
    """Operands come by 128-bit copies to shared memory, results leave by 128-bit stores."""
    assert not machine.spills()
    assert machine.total(tensor_cores) > 0
    assert machine.total("LDGSTS") == machine.total("LDGSTS.E.BYPASS.128") > 0
    assert machine.total("STG.E.128") > 0


def offered(dtype, **pointers):
    """The tiles that tuning tries for a large problem."""
    arguments = {"item_ptr": torch.empty(0, dtype=dtype), "num_rows": 4096, "N": 256} | pointers
    return tiles_kernel.fitting(tiles_kernel.tile_configs(), arguments)


def name(config):
    return "x".join(str(size) for size in config.kwargs.values())


def wgmma(config):
    """Hopper's own instruction works on 64 rows; smaller tiles take the older one."""
    return "HGMMA" if config.kwargs["BLOCK_B"] >= 64 else "HMMA"


@pytest.mark.parametrize("config", offered(torch.bfloat16), ids=name)
def test_every_tile_for_hopper(config):
    assert_fast(forward(torch.bfloat16, config, True, "gelu"), wgmma(config))


# The largest tiles are the ones that run out of registers.
@pytest.mark.parametrize("config", offered(torch.bfloat16, grad_ptr=None)[:2], ids=name)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gradient_for_hopper(config, several, activation):
    machine = gradient(torch.bfloat16, config, several, activation)
    assert_fast(machine, wgmma(config))
    assert machine.total("LDG.E.128") > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_request_for_hopper(dtype):
    assert_fast(forward(dtype, offered(dtype)[0], False, "silu"), "HGMMA")


@pytest.mark.parametrize("config", offered(torch.float32)[:1], ids=name)
def test_fp32_for_hopper(config):
    assert_fast(forward(torch.float32, config, True, "gelu"), "HGMMA")
    assert_fast(gradient(torch.float32, config, True, "silu"), "HGMMA")
    exact = forward(torch.float32, config, True, "gelu", precision="ieee")
    assert not exact.spills()
    assert exact.total("HGMMA") == exact.total("HMMA") == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_with_the_user_for_hopper(dtype):
    floats = f"*{SIZES[dtype]}"
    pointers = {"user_ptr": floats, "weight_ptr": floats, "bias_ptr": floats, "out_ptr": "*fp32"}
    constants = {"N": 256, "U": 4000, "USER_STRIDE": 4000, "WEIGHT_STRIDE": 4000, "HAS_BIAS": True}
    config = triton.Config({"BLOCK_N": 4, "BLOCK_U": 2048}, num_warps=8, num_stages=1)
    machine = compiled(kernel.user_kernel, pointers, constants, config)
    assert not machine.spills()
    assert machine.total("LDG.E.128") > 8 * machine.total("LDG.E") / 10


def test_the_gate_sees_a_tile_that_spills():
    large = triton.Config({"BLOCK_B": 128, "BLOCK_N": 128, "BLOCK_K": 64}, num_warps=4, num_stages=3)
    machine = forward(torch.bfloat16, large, True, "gelu")
    assert machine.spills()
    assert machine.registers == 255
    arguments = {"item_ptr": torch.empty(0, dtype=torch.bfloat16), "num_rows": 4096, "N": 256}
    assert large not in tiles_kernel.fitting([large, *tiles_kernel.tile_configs()], arguments)


def test_the_gate_sees_narrow_loads():
    """A row of 399 numbers starts anywhere: no 128-bit load is possible. Pad it to a multiple of 8."""
    config = offered(torch.bfloat16)[0]
    with pytest.raises(AssertionError):
        assert_fast(forward(torch.bfloat16, config, False, "none", stride=399), "HGMMA")
    assert_fast(forward(torch.bfloat16, config, False, "none", stride=408), "HGMMA")


def test_tiles_fit_small_problems():
    arguments = {"item_ptr": torch.empty(0, dtype=torch.bfloat16), "num_rows": 1, "N": 8}
    fit = tiles_kernel.fitting(tiles_kernel.tile_configs(), arguments)
    assert {config.kwargs["BLOCK_B"] for config in fit} == {32}


def test_a_kernel_on_a_cpu_is_refused():
    from feedworks_kernels import user_item_linear
    from feedworks_kernels.testing import forced, random_layer

    layer = random_layer(torch.Generator().manual_seed(1), (4, 0, 3, 2, 5))
    with forced("triton"), pytest.raises(RuntimeError, match="cannot run on cpu: unset FEEDWORKS_KERNELS"):
        user_item_linear(**layer)
