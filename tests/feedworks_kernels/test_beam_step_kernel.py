"""beam_step's Triton kernels: in the interpreter, on a GPU, and as machine code for two GPUs."""

from __future__ import annotations

import importlib

import pytest
import torch

from feedworks_kernels import beam_step
from feedworks_kernels.machine_code import compile_for_gpu
from feedworks_kernels.testing import forced

from .cases import run_cases

triton = pytest.importorskip("triton")
kernel = importlib.import_module("feedworks_kernels.beam_step.kernel")
POINTERS = {
    **dict.fromkeys(("score_ptr", "out_score_ptr"), "*fp32"),
    **dict.fromkeys(("node_ptr", "out_parent_ptr", "out_code_ptr", "out_node_ptr"), "*i64"),
}


def test_in_the_interpreter():
    assert run_cases("beam_step", interpreted=True) > 50


@pytest.mark.gpu
def test_on_the_gpu():
    assert run_cases("beam_step", interpreted=False) > 50


def compiled(function, capability, logits="fp32", num_warps=4, **constants):
    """Compile one of the kernels; integers in memory that are not named are int32."""
    pointers = {name: POINTERS.get(name, "*i32") for name in function.arg_names if name.endswith("_ptr")}
    pointers |= {"logits_ptr": f"*{logits}"} if "logits_ptr" in pointers else {}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    return compile_for_gpu(
        function,
        pointers,
        constants,
        integers=tuple({"num_beams", "num_nodes", "num_children"} & set(function.arg_names)),
        capability=capability,
        num_warps=num_warps,
        **kernel.OPTIONS,
    )


def extend(capability, num_codes, normalise, logits="fp32", **changed):
    """Compile for 256 beams; one beam, the root, has more groups."""
    constants = {
        "SEARCH_STRIDE": 256 * num_codes,
        "BEAM_STRIDE": num_codes,
        "C": num_codes,
        "BY_CHILDREN": normalise == "children",
        "SLOTS": 256,
        "GROUPS": 4,
        "BLOCK_X": num_codes,
    }
    sizes = kernel.normaliser(num_codes, num_codes)
    return compiled(kernel.extend_kernel, capability, logits, **constants | sizes | changed)


@pytest.mark.parametrize(
    ("num_codes", "normalise", "capability"),
    [
        (256, "codebook", 90),
        (2048, "codebook", 90),
        (8192, "codebook", 90),
        (8192, "children", 90),
        (8192, "codebook", 80),
    ],
)
def test_extending_does_not_spill(num_codes, normalise, capability):
    machine = extend(capability, num_codes, normalise)
    assert not machine.spills()
    if normalise == "codebook" and num_codes > 256:
        assert machine.total("LDG.E.128") > 0  # all logits of a row


def test_one_beam_with_half_precision():
    machine = extend(90, 8192, "codebook", "bf16", GROUPS=1024)
    assert not machine.spills()
    assert machine.total("LDG.E.128") > 0


@pytest.mark.parametrize("capability", [90, 80])
def test_filtering_does_not_spill(capability):
    sizes = {"WIDTH": 256, "SLOTS": 256, "GROUPS": 4, "BLOCK_S": 256, "BLOCK_G": kernel.MOST_PLACES}
    machine = compiled(kernel.filter_kernel, capability, num_warps=8, **sizes)
    assert not machine.spills()
    assert machine.total("LDG.E.128") > 0  # all maxima of a search


@pytest.mark.parametrize("capability", [90, 80])
def test_ranking_does_not_spill(capability):
    sizes = {"WIDTH": 256, "SLOTS": 256, "BLOCK_R": 32, "BLOCK_J": 128}
    assert not compiled(kernel.rank_kernel, capability, **sizes).spills()


def test_the_gate_sees_too_many_numbers_a_thread():
    assert extend(90, 2048, "codebook", num_warps=1).spills()


def test_a_kernel_on_a_cpu_is_refused():
    level = torch.tensor([0, 2]), torch.tensor([0, 3])
    with forced("triton"), pytest.raises(RuntimeError, match="cannot run on cpu: unset FEEDWORKS_KERNELS"):
        beam_step(torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, 1).long(), *level, 2)
