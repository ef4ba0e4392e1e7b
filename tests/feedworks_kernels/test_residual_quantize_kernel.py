"""residual_quantize's Triton kernels: in the interpreter, on a GPU, and as machine code for two GPUs."""

from __future__ import annotations

import importlib

import pytest
import torch

from feedworks_kernels import residual_quantize
from feedworks_kernels.machine_code import compile_for_gpu
from feedworks_kernels.testing import forced

from .cases import run_cases

triton = pytest.importorskip("triton")
kernel = importlib.import_module("feedworks_kernels.residual_quantize.kernel")
AMPERE_BYTES = 163 << 10
POINTERS = {
    **dict.fromkeys(("low_ptr", "low_row_ptr"), "*fp16"),
    **dict.fromkeys(("half_ptr", "stats_ptr", "residual_ptr"), "*fp32"),
    **dict.fromkeys(("codes_ptr", "open_ptr"), "*i64"),
    "num_open_ptr": "*i32",
}


def test_in_the_interpreter():
    assert run_cases("residual_quantize", interpreted=True) > 50


@pytest.mark.gpu
def test_on_the_gpu():
    assert run_cases("residual_quantize", interpreted=False) > 50


def compiled(function, width, capability=90, dtype="fp32", num_codes=8192, **changed):
    """Compile one kernel as the launcher would for rows of that width."""
    padded = max(16, triton.next_power_of_2(width))
    tile = kernel.tile(padded, kernel.HOPPER_BYTES if capability == 90 else AMPERE_BYTES)
    constants = kernel.constants_of(width, num_codes, True, (width, 0))
    constants |= kernel.EXACT if function is kernel.exact_kernel else kernel.search_of(padded, 1, tile)
    constants |= {"CHUNK": 64} if function is kernel.wide_kernel else {}
    constants |= changed
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    names = set(function.arg_names)
    floats = dict.fromkeys(("x_ptr", "codebooks_ptr"), f"*{dtype}")
    return compile_for_gpu(
        function,
        {name: kind for name, kind in (POINTERS | floats).items() if name in names},
        {name: value for name, value in constants.items() if name in names},
        integers=("num_rows", "num_levels"),
        capability=capability,
        **options,
        **kernel.OPTIONS,
    )


def assert_fast(machine, tensor_cores):
    """Codes come by 128-bit copies to shared memory, vectors by 128-bit loads and stores."""
    assert not machine.spills()
    assert machine.total(tensor_cores) > 0
    assert machine.total("LDGSTS") == machine.total("LDGSTS.E.BYPASS.128") > 0
    assert machine.total("LDG.E.128") > 0
    assert machine.total("STG.E.128") > 0


@pytest.mark.parametrize(("width", "dtype"), [(64, "bf16"), (128, "fp32")])
@pytest.mark.parametrize(("capability", "tensor_cores"), [(90, "HGMMA"), (80, "HMMA")])
def test_rows_in_registers(width, dtype, capability, tensor_cores):
    assert_fast(compiled(kernel.quantise_kernel, width, capability, dtype), tensor_cores)


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "tensor_cores"),
    [(512, "fp32", 90, "HGMMA"), (256, "bf16", 80, "HMMA")],
)
def test_rows_in_memory(width, dtype, capability, tensor_cores):
    assert_fast(compiled(kernel.wide_kernel, width, capability, dtype), tensor_cores)


@pytest.mark.parametrize(("capability", "tensor_cores"), [(90, "HGMMA"), (80, "HMMA")])
def test_open_rows(capability, tensor_cores):
    assert_fast(compiled(kernel.exact_kernel, 512, capability), tensor_cores)


def test_the_gate_sees_a_tile_that_spills():
    assert compiled(kernel.quantise_kernel, 128, num_warps=4).spills()


def test_the_gate_sees_narrow_loads():
    """Rows of 63 numbers start anywhere: no 128-bit load is possible."""
    with pytest.raises(AssertionError):
        assert_fast(compiled(kernel.quantise_kernel, 63, dtype="bf16"), "HGMMA")


def test_stages_follow_shared_memory():
    assert [kernel.tile(width).stages for width in (64, 128, 256, 512)] == [3, 3, 3, 3]
    assert [kernel.tile(width, AMPERE_BYTES).stages for width in (64, 128, 256, 512)] == [3, 3, 2, 2]
    assert kernel.tile(512, 99 << 10).stages == 0  # a consumer's card: the other form


def test_a_kernel_on_a_cpu_is_refused():
    with forced("triton"), pytest.raises(RuntimeError, match="cannot run on cpu: unset FEEDWORKS_KERNELS"):
        residual_quantize(torch.zeros(2, 4), torch.zeros(1, 3, 4))
