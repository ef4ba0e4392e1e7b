"""summary_attention's Triton kernels: in the interpreter, on a GPU, and as machine code for H100 and A100."""

from __future__ import annotations

import importlib
from functools import cache

import pytest
import torch

from feedworks_kernels.machine_code import compile_for_gpu

from .cases import run_cases

triton = pytest.importorskip("triton")
PACKAGE = "feedworks_kernels.summary_attention"
forward_kernel = importlib.import_module(f"{PACKAGE}.forward_kernel")
key_gradient_kernel = importlib.import_module(f"{PACKAGE}.key_gradient_kernel")
kernel = importlib.import_module(f"{PACKAGE}.kernel")
query_gradient_kernel = importlib.import_module(f"{PACKAGE}.query_gradient_kernel")
tiles_kernel = importlib.import_module(f"{PACKAGE}.tiles_kernel")
FUNCTIONS = {
    "forward": forward_kernel.forward_kernel,
    "query": query_gradient_kernel.query_gradient_kernel,
    "key": key_gradient_kernel.key_gradient_kernel,
}
# Shared memory of one program: H100, A100, and what GPUs without tensor memory of a server have.
SHARED = {90: 227 << 10, 80: 163 << 10, 86: 99 << 10}


def test_in_the_interpreter():
    assert run_cases("summary_attention", interpreted=True, timeout_s=500) > 25


@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_on_the_gpu():
    assert run_cases("summary_attention", interpreted=False, timeout_s=1700) > 200


@cache
def compiled(direction, width, tile, capability, *, of="bf16", odd=(), **choices):
    """Compile a kernel with a tile; `direction` as in the table of tiles, `odd` strides are of any number."""
    text = not direction.startswith("summary")
    name = direction.removeprefix("summary_").removesuffix("_packs").removesuffix("_packed")
    function = FUNCTIONS["forward" if name == "summary" else name]
    constants = {"PACK": 4, "PACKS": 1, "PACKED": False, "PRECISION": "ieee", "SPLITS": 1} | choices
    constants |= {"TEXT": text, "D": width, "UPCAST": False}
    constants |= {"BLOCK_T": tile.rows, "BLOCK_N": tile.keys, "BLOCK_E": tile.edge}
    names = function.arg_names
    pointers = {n: f"*{of}" for n in names if n.endswith("_ptr") and n not in ("first_ptr", "end_ptr")}
    pointers |= {n: "*fp32" for n in pointers if "lse" in n or "delta" in n}
    if constants["SPLITS"] > 1:
        pointers |= {n: "*fp32" for n in ("grad_key_ptr", "grad_value_ptr") if n in names}
    if constants["PACKED"]:
        pointers |= {n: "*i32" for n in ("first_ptr", "end_ptr") if n in names}
    return compile_for_gpu(
        function,
        pointers,
        {n: value for n, value in constants.items() if n in names},
        integers=tuple(n for n in names if n in (*forward_kernel.RUNTIME, *odd)),
        strides=tuple(n for n in names if n.endswith(("_b", "_g", "_h", "_row")) and n not in odd),
        floats=tuple(n for n in names if n.startswith("scale")),
        capability=capability,
        **tile.options(),
    )


def assert_fits(machine, capability):
    """Nothing spills, shared memory suffices, operands come and results leave by 128 bits."""
    assert not machine.spills(), (machine.registers, machine.stack_bytes)
    assert machine.shared_bytes <= SHARED[capability]
    # Other widths are for log-sum-exps and their like, a number per row.
    assert machine.total("LDGSTS.E.BYPASS.128") + machine.total("LDG.E.128") >= machine.total("LDGSTS.E") / 3
    assert machine.total("STG.E.128") > 0
    assert machine.total("LDG.E.U16") == machine.total("STG.E.U16") == 0


def assert_fast(machine, capability):
    """And products run on the tensor cores, by Hopper's own instruction there."""
    assert_fits(machine, capability)
    assert machine.total("LDGSTS.E.BYPASS.128") >= machine.total("LDGSTS.E") / 3 > 0
    tensor_cores, other = ("HGMMA", "HMMA") if capability == 90 else ("HMMA", "HGMMA")
    assert machine.total(tensor_cores) > 0
    assert machine.total(other) == 0


def entries(kind, *widths):
    table = tiles_kernel.TILES
    return [(*key[:2], tile) for key, tile in table.items() if key[2] == kind and key[1] in widths]


def name(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def packs_of(direction):
    """What calls this entry: groups of 4 heads in one tile, or of 3 heads in three."""
    return {"PACK": 1, "PACKS": 3} if direction == "key_packs" else {"PACKED": "_packed" in direction}


@pytest.mark.parametrize(("direction", "width", "tile"), entries("hopper", 128), ids=name)
def test_every_tile_for_hopper(direction, width, tile):
    assert_fast(compiled(direction, width, tile, 90, **packs_of(direction)), 90)


@pytest.mark.parametrize(
    "choices",
    [{}, {"PACKED": True}, {"PACK": 1}, {"PACK": 2, "PACKED": True}, {"of": "fp16"}, {"SPLITS": 2}],
    ids=str,
)
@pytest.mark.parametrize(("direction", "width", "tile"), entries("hopper", 64, 128), ids=name)
def test_every_choice_for_hopper(direction, width, tile, choices):
    if choices.get("PACKED") and (f"{direction}_packed", width, "hopper") in tiles_kernel.TILES:
        pytest.skip("has a tile of its own")
    for of_summaries in (False, True) if direction.startswith("key") else (False,):
        place = "summary_" * of_summaries + direction
        assert_fast(compiled(place, width, tile, 90, **packs_of(direction) | choices), 90)


@pytest.mark.parametrize(("direction", "width", "tile"), entries("ampere", 64, 128), ids=name)
def test_every_tile_for_ampere(direction, width, tile):
    machine = compiled(direction, width, tile, 80, **packs_of(direction))
    assert_fast(machine, 80)
    assert machine.shared_bytes <= SHARED[86]


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize(("direction", "width", "tile"), entries("fp32", 64, 128), ids=name)
def test_every_tile_for_fp32(direction, width, tile, precision):
    machine = compiled(direction, width, tile, 90, of="fp32", PRECISION=precision, **packs_of(direction))
    assert_fits(machine, 90)
    assert machine.shared_bytes <= SHARED[86]
    assert (machine.total("HMMA") + machine.total("HGMMA") > 0) == (precision == "tf32")


def test_the_gate_sees_a_tile_that_spills():
    machine = compiled("forward", 128, tiles_kernel.Tile(128, 128, 128, 4, 2), 90)
    assert machine.spills()
    with pytest.raises(AssertionError):
        assert_fast(machine, 90)


def test_the_gate_sees_narrow_loads():
    tile = tiles_kernel.TILES["summary", 64, "hopper"]
    assert_fast(compiled("summary", 64, tile, 90), 90)
    with pytest.raises(AssertionError):
        assert_fast(compiled("summary", 64, tile, 90, odd=("key_row",)), 90)


def test_every_call_has_a_tile(monkeypatch):
    monkeypatch.setattr(tiles_kernel, "INTERPRETED", False)
    for capability, kind in (
        (80, "ampere"),
        (89, "ampere"),
        (90, "hopper"),
        (100, "hopper"),
        (120, "ampere"),
    ):
        monkeypatch.setattr(tiles_kernel, "capability_of", lambda _, number=capability: number)
        for width in tiles_kernel.WIDTHS:
            x = torch.empty(1, 1, 1, width, dtype=torch.bfloat16)
            assert tiles_kernel.kind_of(x) == kind
            for direction in ("forward", "summary", "query", "summary_query", "key", "key_packs"):
                for packed in (False, True):
                    assert tiles_kernel.tile_of(direction, x, packed=packed).rows >= 16
                    assert tiles_kernel.tile_of(direction, x.float(), packed=packed).edge >= 16


def test_a_kernel_on_a_cpu_is_refused():
    from feedworks_kernels import summary_attention
    from feedworks_kernels.testing import forced, random_rows

    rows = random_rows(torch.Generator().manual_seed(1), (1, 1, 1, 8, 16), chunk=8)
    with forced("triton"), pytest.raises(RuntimeError, match="cannot run on cpu: unset FEEDWORKS_KERNELS"):
        summary_attention(*rows, chunk=8, window=1)
