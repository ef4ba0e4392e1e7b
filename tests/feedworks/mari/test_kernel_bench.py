"""The bench of the kernel: what it prints, what it refuses, its floor by hand."""

from __future__ import annotations

import json

import click
import pytest
import torch
from click.testing import CliRunner

from feedworks.errors import ConfigError
from feedworks.mari import kernel_bench, kernel_bench_gpu
from feedworks.mari.kernel_bench import Run, layer_rows, main, table
from feedworks_kernels.user_item_linear.peers import OURS, draw, providers


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def test_rows_of_a_cpu():
    result = run("--device", "cpu", "--shape", "300,40,8,16", "--repeats", "3", "--threads", "1")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert [row["shape"]["R"] for row in rows if row["provider"] == OURS] == [1, 16]
    assert {row["dtype"] for row in rows} == {"float32"}
    ours = next(row for row in rows if row["provider"] == OURS)
    assert ours["flop_ratio"] == pytest.approx(300 * 48 / (300 * 8 + 40), abs=1e-3)
    expected = ours["speedup"]["tile_concat_product"] / ours["flop_ratio"]
    assert ours["realised"]["tile_concat_product"] == pytest.approx(expected, abs=1e-2)
    assert result.output.splitlines()[-1].split()[1] in {row["provider"] for row in rows}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so_in_one_line():
    result = run()
    assert result.exit_code == 2
    assert "no CUDA device here; take --device cpu" in result.output.splitlines()[-1]
    assert run("--device", "cpu", "--ikbo", ".").exit_code == 2


def test_a_wrong_provider_is_not_timed(monkeypatch):
    def broken(layer, compiled):
        ways = providers(layer, compiled)
        return ways | {"two_products": lambda: ways["two_products"]() + 1e-3}

    monkeypatch.setattr(kernel_bench, "providers", broken)
    with pytest.raises(click.ClickException, match=r"two_products errs by 0\.001"):
        layer_rows((20, 2, 4, 3, 5), Run(device="cpu", dtype=torch.float32, limits={}, repeats=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_providers_agree(dtype):
    layer = draw((70, 3, 20, 10, 8), "cpu", dtype, seed=1)
    ways = providers(layer, compiled=False)
    assert len(ways) == (5 if dtype == torch.float32 else 4)
    for way in ways.values():
        torch.testing.assert_close(way(), ways["tile_concat_product"](), rtol=5e-2, atol=5e-2)


def test_floor_by_hand():
    shape = {"B": 100, "R": 2, "U": 30, "I": 10, "N": 5}
    limits = {"flop_per_s": 1e9, "bytes_per_s": 1e15, "launch_s": 1e-6}
    assert kernel_bench_gpu.floor_s(shape, 2, limits) == pytest.approx(2 * 5 * (1000 + 60) / 1e9 + 1e-6)
    limits = {"flop_per_s": 1e15, "bytes_per_s": 1e9, "launch_s": 1e-6}
    moved = 2 * (1000 + 60 + 5 * 40 + 500)
    assert kernel_bench_gpu.floor_s(shape, 2, limits) == pytest.approx(moved / 1e9 + 1e-6)


def test_table():
    shape = {"B": 1, "R": 1, "U": 2, "I": 3, "N": 4}
    rows = [
        {"op": "ceilings"},
        {"provider": OURS, "shape": shape, "p50_s": 1e-6, "of_floor": 0.5},
        {"provider": "other", "shape": shape, "p50_s": 3e-6},
    ]
    assert table(rows).splitlines()[2].split() == ["1,1,2,3,4", "other", "3.0", "3.00"]


def test_a_folder_without_ikbo_is_named(tmp_path):
    weight = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"--ikbo .*expected FBGEMM's folder"):
        kernel_bench_gpu.ikbo_providers(str(tmp_path), (4, 2, 3, 3, 2), 8, weight, weight)


@pytest.mark.gpu
def test_rows_of_a_gpu():
    result = run("--shape", "256,64,64,64", "--repeats", "3")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert rows[0]["flop_per_s"] > 1e13
    assert all(0 < row["of_floor"] < 1.5 for row in rows[1:])
