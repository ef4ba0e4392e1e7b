"""cache_attention's Triton kernels: in the interpreter, on a GPU, and as machine code for GPUs."""

from __future__ import annotations

import importlib

import pytest
import torch

from feedworks_kernels.machine_code import compile_for_gpu

from .cases import run_cases

triton = pytest.importorskip("triton")
kernel = importlib.import_module("feedworks_kernels.summary_decode.kernel")
update_kernel = importlib.import_module("feedworks_kernels.summary_decode.update_kernel")
SIZES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def test_in_the_interpreter():
    assert run_cases("summary_decode", interpreted=True) > 45


@pytest.mark.gpu
def test_on_the_gpu():
    assert run_cases("summary_decode", interpreted=False) > 45


def part(dtype, width, capability, *, group=4, several=True, tile=None, stride=None):
    """Compile the kernel that reads the cache."""
    tile, floats, stride = tile or kernel.tile_for(dtype, width), f"*{SIZES[dtype]}", stride or width
    pointers = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), floats)
    pointers |= dict.fromkeys(("start_ptr", "stop_ptr", "slot_ptr"), "*i64") | {"lse_ptr": "*fp32"}
    pointers |= {"out_ptr": "*fp32"} if several else {}
    sizes = {"HEADS": 8 * group, "GROUP": group, "QUERIES": 2, "D": width, "SEVERAL": several}
    # Rows of a slot and a head: numbers that a launch finds divisible by 16.
    strides = {f"{name}_slot_stride": 8 * 4096 * stride for name in ("key", "value")}
    strides |= {f"{name}_head_stride": 4096 * stride for name in ("key", "value")}
    tiles = {"BLOCK_R": min(64, max(16, group)), "BLOCK_T": tile.rows, "BLOCK_D": width}
    other = {"KEY_STRIDE": stride, "VALUE_STRIDE": stride, "UPCAST": False, "STAGES": tile.num_stages}
    return compile_for_gpu(
        kernel.part_kernel,
        pointers,
        sizes | strides | tiles | other | {"scale": 0.125},
        integers=("num_rows", "num_slots", "parts"),
        capability=capability,
        num_warps=tile.num_warps,
        **kernel.OPTIONS,
    )


def assert_streams(machine):
    """Keys and values come by 128-bit copies to shared memory, several tiles ahead."""
    assert not machine.spills()
    assert machine.total("LDGSTS") == machine.total("LDGSTS.E.BYPASS.128") > 0
    assert machine.total("STG.E.128") > 0


@pytest.mark.parametrize(
    ("dtype", "width", "capability"),
    [
        *((dtype, width, 90) for dtype in SIZES for width in (64, 128)),
        (torch.bfloat16, 128, 80),
        (torch.float32, 64, 80),
    ],
)
def test_reads_at_full_width(dtype, width, capability):
    machine = part(dtype, width, capability)
    assert_streams(machine)
    # fp32 stays exact, so it takes no tensor cores.
    assert (machine.total("HMMA") > 0) == (dtype != torch.float32)


def test_many_heads_for_hopper():
    machine = part(torch.bfloat16, 128, 90, group=64, several=False)
    assert_streams(machine)
    assert machine.total("HGMMA") > 0


@pytest.mark.parametrize("capability", [90, 80])
def test_merging(capability):
    machine = compile_for_gpu(
        kernel.merge_kernel,
        {"part_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16"},
        {"D": 128, "BLOCK_S": 64, "BLOCK_D": 128},
        integers=("parts",),
        capability=capability,
        num_warps=4,
        **kernel.OPTIONS,
    )
    assert not machine.spills()
    assert machine.total("LDG.E.128") > 0


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("name", ["write_kernel", "move_kernel"])
def test_changes_of_the_cache(name, capability):
    names = ("key_ptr", "value_ptr", "new_key_ptr", "new_value_ptr")
    pointers = dict.fromkeys(names, "*bf16")
    pointers |= dict.fromkeys(("slot_ptr", "write_ptr", "move_ptr"), "*i64")
    strides = {f"{name}_slot_stride": 8 * 4096 * 128 for name in ("key", "value")}
    strides |= {f"{name}_head_stride": 4096 * 128 for name in ("key", "value")}
    sizes = {"KEY_STRIDE": 128, "VALUE_STRIDE": 128, "GROUPS": 8, "QUERIES": 2, "ROWS": 9, "D": 128}
    function = getattr(update_kernel, name)
    machine = compile_for_gpu(
        function,
        {name: kind for name, kind in pointers.items() if name in function.arg_names},
        strides | sizes | {"BLOCK_D": 128, "BLOCK_P": 16},
        capability=capability,
        num_warps=1 if name == "write_kernel" else 4,
        **kernel.OPTIONS,
    )
    assert not machine.spills()
    # One warp copies a row of 256 bytes by 64 bits per lane.
    wide = "64" if name == "write_kernel" else "128"
    assert machine.total(f"STG.E.{wide}") > 0
    assert machine.total(f"LDG.E.{wide}") > 0


def test_the_gate_sees_a_tile_that_spills_and_narrow_loads():
    with pytest.raises(AssertionError):
        assert_streams(part(torch.bfloat16, 128, 90, tile=kernel.Tile(128, 1, 2)))
    with pytest.raises(AssertionError):
        assert_streams(part(torch.bfloat16, 128, 90, stride=129))


def test_parts_fill_the_device_and_stay_long():
    assert kernel.num_parts(1, 7_000, 132) == 54  # 128 rows each
    assert kernel.num_parts(128, 5_000, 132) == 9
    assert kernel.num_parts(10_000, 100_000, 132) == 1
    assert kernel.num_parts(1, 10**6, 132) == 64
    assert kernel.num_parts(1, 10, 132) == 1


def test_a_kernel_on_a_cpu_is_refused():
    from feedworks_kernels import cache_attention
    from feedworks_kernels.testing import forced

    rows, ends = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, dtype=torch.int64)
    with forced("triton"), pytest.raises(RuntimeError, match="cannot run on cpu: unset FEEDWORKS_KERNELS"):
        cache_attention(rows, rows, rows, ends - 1, ends)
