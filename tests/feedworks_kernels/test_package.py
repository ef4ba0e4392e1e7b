"""The package: its public names, the dispatch rule, imports that need torch alone."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import feedworks_kernels
from feedworks_kernels import _dispatch
from feedworks_kernels.testing import assert_close, forced, poisoned_memory


def test_every_exported_function_is_documented_and_typed():
    for name in feedworks_kernels.__all__:
        member = getattr(feedworks_kernels, name)
        assert inspect.getdoc(member), name
        if inspect.isfunction(member):
            assert "Raises:" in member.__doc__
            hints = inspect.get_annotations(member)
            assert set(hints) == {*inspect.signature(member).parameters, "return"}


@pytest.mark.parametrize("op", ["beam_step", "residual_quantize", "summary_attention", "user_item_linear"])
def test_dispatch(op, monkeypatch):
    monkeypatch.delenv(_dispatch.VARIABLE, raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert _dispatch.implementation(op, cpu).__module__ == f"feedworks_kernels.{op}.eager"
    assert _dispatch._choose(op, cuda) == ("triton" if _dispatch._has_kernel(op) else "eager")
    with forced("reference"):
        assert _dispatch.implementation(op, cuda).__module__ == f"feedworks_kernels.{op}.reference"
    with (
        forced("fast"),
        pytest.raises(ValueError, match="FEEDWORKS_KERNELS='fast': expected one of reference"),
    ):
        _dispatch.implementation(op, cpu)


def test_a_forced_kernel_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(_dispatch, "_has_kernel", lambda op: False)
    with forced("triton"), pytest.raises(RuntimeError, match="no Triton kernel"):
        _dispatch.implementation("beam_step", torch.device("cpu"))


def test_a_cuda_tensor_takes_the_kernel_once_there_is_one(monkeypatch):
    monkeypatch.delenv(_dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(_dispatch, "_has_kernel", lambda op: True)
    assert _dispatch._choose("beam_step", torch.device("cuda")) == "triton"
    assert _dispatch._choose("beam_step", torch.device("cpu")) == "eager"


def test_imports_nothing_but_torch():
    code = (
        "import sys, feedworks_kernels;"
        "print([m for m in ('feedworks', 'kfp', 'pandas', 'faiss', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_test_tools_bite():
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.0]), torch.tensor([1.001]), torch.float32)
