"""The bench: it runs, it refuses what is wrong, its rows are never lost, it needs torch and numpy alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bench import attention_peers, exactness, gpu_round, results, run, timing
from bench.operators import beam_step, residual_quantize, user_item_linear
from bench.operators import summary_attention as attention
from bench.registry import OURS, Case, Work, difference, operators, relative_error
from feedworks_kernels import measuring
from feedworks_kernels.measuring import Ceilings
from feedworks_kernels.summary_attention import reference
from feedworks_kernels.summary_attention.pattern import Pattern

ROOT = Path(__file__).parents[2]
LIMITS = Ceilings(1e9, 1e10)


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch):
    monkeypatch.setattr(run, "ceilings", lambda device, quick: LIMITS)


def quick(tmp_path, *arguments):
    path = tmp_path / "results.csv"
    code = run.main([*arguments, "--quick", "--device=cpu", "--seconds=0.1", f"--results={path}"])
    return code, results.read(path)


@pytest.mark.parametrize("name", [operator.name for operator in operators()])
def test_every_operator_is_checked_and_timed(name, tmp_path, capsys):
    code, rows = quick(tmp_path, "--op", name)
    assert code == 0
    assert {row["provider"] for row in rows if row["p50_s"]} > {OURS}
    for row in rows:
        assert set(row) == set(results.COLUMNS)
        assert row["p50_s"] or row["note"]
        if row["provider"] == OURS:
            assert float(row["speedup"]) == 1
            assert 0 <= float(row["error"]) < 1e-4
            assert float(row["fraction_of_ceiling"]) > 0
    assert f"| {name} |" in capsys.readouterr().out


def test_a_wrong_operator_gets_no_time(tmp_path, monkeypatch, capsys):
    right = residual_quantize.residual_quantize

    def wrong(x_ND, codebooks_LCD):
        found = right(x_ND, codebooks_LCD)
        return found._replace(codes_NL=found.codes_NL.roll(1, dims=0))

    monkeypatch.setattr(residual_quantize, "residual_quantize", wrong)
    code, rows = quick(tmp_path, "--op=residual_quantize")
    assert code == 1
    ours = next(row for row in rows if row["provider"] == OURS)
    assert ours["p50_s"] == ours["speedup"] == ""
    assert ours["note"].startswith("wrong: errs by")
    assert all(row["p50_s"] for row in rows if row["provider"] != OURS)
    assert "feedworks: wrong: errs by" in capsys.readouterr().out


def test_a_wrong_peer_gets_no_time(tmp_path, monkeypatch):
    right = residual_quantize.peers.torch_blocks
    monkeypatch.setattr(
        residual_quantize.peers, "torch_blocks", lambda *inputs: lambda: right(*inputs)().flip(0)
    )
    code, rows = quick(tmp_path, "--op=residual_quantize")
    assert code == 1
    assert {row["provider"]: bool(row["p50_s"]) for row in rows}["torch_blocks"] is False


def test_ours_that_breaks_fails_the_run_and_a_peer_that_breaks_does_not(tmp_path, monkeypatch):
    def breaks(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(residual_quantize.peers, "torch_blocks", breaks)
    code, rows = quick(tmp_path, "--op=residual_quantize")
    assert code == 0
    notes = {row["provider"]: row["note"] for row in rows}
    assert notes["torch_blocks"] == "not run: RuntimeError: out of luck"
    monkeypatch.setattr(residual_quantize, "residual_quantize", breaks)
    assert quick(tmp_path, "--op=residual_quantize")[0] == 1


@pytest.mark.parametrize("part", ["score_BW", "code_BW", "node_BW", "parent_BW"])
def test_a_wrong_beam_is_seen(part):
    case = beam_step.OPERATOR.cases("cpu", quick=True)[0]
    inputs = beam_step.OPERATOR.inputs(case, 1)
    result = beam_step.OPERATOR.providers(case)[0].bind(inputs)()
    assert beam_step.OPERATOR.error(case, inputs, result) < 1e-5
    changed = getattr(result, part).clone()
    changed[0, 3] += 1
    assert beam_step.OPERATOR.error(case, inputs, result._replace(**{part: changed})) > 1e-3


@pytest.mark.parametrize("change", ["score", "path", "twice", "fewer"])
def test_a_wrong_search_is_seen(change):
    case = Case("beam_step", "search", "", {"K": 9, "C": 16, "items": 500}, "fp32", "cpu")
    inputs = beam_step.OPERATOR.inputs(case, 1)._replace(by_prefix=True)
    found = beam_step.OPERATOR.providers(case)[0].bind(inputs)()
    assert beam_step.OPERATOR.error(case, inputs, found) < 1e-5
    wrong = {
        "score": found._replace(score_W=found.score_W + 0.01),
        "path": found._replace(sid_WL=(found.sid_WL + 1) % 16),
        "twice": found._replace(sid_WL=found.sid_WL[[0, 0, *range(2, 9)]]),
        "fewer": found._replace(sid_WL=found.sid_WL[:8], score_W=found.score_W[:8]),
    }
    assert beam_step.OPERATOR.error(case, inputs, wrong[change]) > 1e-3


def test_work_by_hand():
    sizes = {"B": 100, "R": 2, "U": 30, "I": 10, "N": 5}
    case = Case("user_item_linear", "forward", "", sizes, "bf16", "cpu")
    expected = Work(2 * 5 * (1000 + 60), 2 * (1000 + 60 + 5 * 40 + 500))
    assert user_item_linear.OPERATOR.work(case) == expected
    assert timing.floor_s(Work(2e9, 1e9), LIMITS) == 2
    assert timing.floor_s(Work(2e9, 1e11), LIMITS) == 10


def test_relative_error_sees_what_is_missing():
    exact = torch.tensor([3.0, 4.0]).double()
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, torch.nan]), exact) == float("inf")
    assert relative_error(torch.tensor([3.0]), exact) == float("inf")


def test_rows_are_kept_when_a_write_fails(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    results.append(path, [{"op": "a", "provider": "x", "p50_s": 0.5}])
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(results.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            results.append(path, [{"op": "b", "provider": "x"}])
    assert path.read_text() == before
    assert [child.name for child in tmp_path.iterdir()] == ["results.csv"]
    with pytest.raises(ValueError, match="unknown columns"):
        results.append(path, [{"colour": "red"}])


def test_rows_of_runs_side_by_side_are_all_kept(tmp_path):
    path = tmp_path / "results.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: results.append(path, [{"op": str(n), "provider": "x"}]), range(40)))
    assert sorted(int(row["op"]) for row in results.read(path)) == list(range(40))


def test_a_column_of_another_version_is_kept_and_a_torn_file_is_named(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("op,provider,colour\na,x,red\n")
    results.append(path, [{"op": "b", "provider": "x"}])
    assert [(row["op"], row["colour"]) for row in results.read(path)] == [("a", "red"), ("b", "")]
    path.write_text("op,provider\na\n")
    with pytest.raises(ValueError, match="line 2: expected as many fields"):
        results.read(path)


def test_the_table_shows_the_newest_run():
    same = {"device": "gpu", "op": "a", "mode": "forward", "shape": "s", "dtype": "bf16", "clock": "graph"}
    rows = results.as_text(
        [
            {**same, "date": "1", "provider": "gone", "p50_s": 1.0, "p20_s": 1.0, "p80_s": 1.0},
            {**same, "date": "2", "provider": "peer", "p50_s": 0.004, "p20_s": 0.003, "p80_s": 0.005},
            {**same, "date": "2", "provider": OURS, "p50_s": 2e-6, "p20_s": 1e-6, "p80_s": 3e-6},
            {**same, "date": "2", "provider": "absent", "note": "not run: not here"},
        ]
    )
    lines = results.table(rows).splitlines()[-3:]
    assert lines[0].startswith(f"| a | forward | s | bf16 | {OURS} | 2 us | 1 us .. 3 us |")
    assert "| peer | 4 ms | 3 ms .. 5 ms |" in lines[1]
    assert "not run: not here" in lines[2]
    timed = [
        row | {"flops": "4e6", "bytes": "1e3", "speedup": "2", "fraction_of_ceiling": "0.5"}
        for row in rows[1:]
    ]
    assert results.brief(timed) == ["- a forward s bf16: 2 us, 2 TFLOP/s, 0.5 of ceiling; peer 2x; absent -"]


def test_exactness(tmp_path, monkeypatch, capsys):
    command = ["exactness", "--op=residual_quantize", "--device=cpu", f"--results={tmp_path / 'a'}"]
    assert run.main(command) == 0
    found = exactness.read(tmp_path / "a")
    assert {"forward", "product", "product, repeated"} < {each.quantity for each in found}
    assert exactness.worst(found + found)[0] == found[0]._replace(cases=2 * found[0].cases)
    monkeypatch.setattr(residual_quantize.OPERATOR, "error", lambda *_: float("nan"))
    assert run.main(command) == 1
    assert "too large" in capsys.readouterr().out


def test_the_worst_is_the_one_furthest_over_what_is_allowed():
    one = exactness.Finding("a", "forward", "fp32", 1, 0.5, 1.0, "here")
    others = [one._replace(error=0.2, allowed=0.1, where="over"), one._replace(error=0.9, where="large")]
    assert exactness.worst([one, *others])[0].where == "over"
    assert not exactness.worst([one, *others])[0].passed
    assert exactness.worst([one, one._replace(error=float("nan"), where="nan")])[0].where == "nan"
    assert "- a fp32: 0 of 1 results pass over 3 cases, worst 2.0e-01" in exactness.brief(
        exactness.worst([one, *others])
    )


def test_a_moving_result_is_seen():
    assert difference(torch.ones(3), torch.ones(3)) == 0
    assert difference([torch.ones(3), torch.ones(2)], [torch.ones(3), torch.tensor([1.0, 1.1])]) > 0.09
    assert difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) == float("inf")


@pytest.mark.parametrize("name", [operator.name for operator in operators()])
def test_every_operator_draws_random_cases(name):
    cases = exactness.random_cases([name], "cpu", 0, 1)
    found = exactness.run(itertools.islice(cases, 2), 60)
    assert found
    assert all(each.passed for each in found), exactness.table(found)


def test_the_parts_of_a_sweep_are_the_whole():
    whole = {case for _, case in map(hashable, exactness.swept([], "cpu", 0, 1))}
    parts = [{case for _, case in map(hashable, exactness.swept([], "cpu", part, 3))} for part in range(3)]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)


def hashable(pair):
    operator, case = pair
    return operator, (*case[:3], *case[4:])


def test_pairs_by_hand_and_by_the_definition():
    sizes = {"B": 2, "H": 3, "G": 3, "T": 45, "D": 16, "k": 4, "W": 3, "m": 2}
    pattern = Pattern(4, 3, 2, 1.0)
    mask = reference.mask(pattern, *reference.kinds(pattern, 45, 24))
    assert attention.num_pairs(sizes) == int(mask.sum())
    case = Case("summary_attention", "forward", "", sizes, "bf16", "cpu")
    work = attention.OPERATOR.work(case)
    assert work == Work(4 * int(mask.sum()) * 16 * 3 * 2, 2 * 2 * 69 * 16 * 2 * 6)


def test_attention_peers_compute_the_same():
    case = attention.OPERATOR.cases("cpu", quick=True)[0]
    inputs = attention.OPERATOR.inputs(case, 1)
    found = {each.name: each for each in attention.OPERATOR.providers(case) if not each.missing}
    assert {"flex_separate", "flex_interleaved", "flex_window", "sdpa"} < set(found)
    for name in ("flex_separate", "flex_interleaved"):
        assert attention.OPERATOR.error_of(case, found[name], inputs) < 1e-5


def test_a_block_in_two_lists_would_count_twice():
    mask = attention_peers.block_mask(lambda b, h, reader, key: key <= reader, 384, 384, torch.device("cpu"))
    assert mask.kv_num_blocks.tolist() == [[[1, 1, 1]]]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 2]]]
    assert mask.kv_indices[0, 0, :, 0].tolist() == [0, 1, 2]


def test_a_sample_of_a_long_sequence_is_exact():
    sizes = {"B": 1, "H": 2, "G": 1, "T": 1100, "D": 64, "k": 8, "W": 6, "m": 1}
    for mode in ("forward", "backward"):
        case = Case("summary_attention", mode, "", sizes, "fp32", "cpu")
        inputs = attention.OPERATOR.inputs(case, 1)
        ours = attention.OPERATOR.providers(case)[0]
        assert attention.OPERATOR.error_of(case, ours, inputs) < 1e-5
        shifted = [part.roll(1, dims=2) for part in ours.bind(inputs)()]
        assert attention.OPERATOR.error(case, inputs, shifted) > 0.1


def test_the_round_runs_and_keeps_what_it_found(tmp_path, capsys):
    arguments = ["--device=cpu", "--quick", "--op=user_item_linear", "--only=check", "--only=time"]
    assert gpu_round.main([*arguments, f"--out={tmp_path}"]) == 0
    assert len(results.read(tmp_path / "results.csv")) == 5
    assert {row["error"] != "" for row in results.read(tmp_path / "check.csv")} == {True}
    printed = capsys.readouterr().out
    assert "- check: passed" in printed
    assert "user_item_linear forward 300x(40+8)x16 fp32: " in printed.splitlines()[-1]
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_section_that_hangs_or_fails_takes_no_other_with_it(tmp_path):
    commands = [["-c", "import time; time.sleep(60)"], ["-c", "print('done')"], ["-c", "raise SystemExit(3)"]]
    done = gpu_round.run_section(gpu_round.Section("three", commands, 2), tmp_path)
    assert done.codes == [None, 0, 3]
    assert done.failed()
    assert done.seconds < 10
    assert "done" in (tmp_path / "round.log").read_text()
    text = gpu_round.report([done, gpu_round.Done("fine", 1.0, [0])], tmp_path)
    assert "- three: failed" in text
    assert "1 of 3 processes stopped at the end of its box" in text
    assert "- fine: passed" in text


def test_measure_takes_turns_and_rotates_the_buffers():
    seen = []
    calls = {name: [lambda n=name, k=k: seen.append((n, k)) for k in range(3)] for name in "ab"}
    timings = measuring.measure(calls, "cpu", seconds=0)
    assert set(timings) == {"a", "b"}
    assert {place for name, place in seen if name == "a"} == {0, 1, 2}
    assert all(timing.min_s <= timing.p20_s <= timing.p50_s <= timing.p80_s for timing in timings.values())
    with pytest.raises(ValueError, match="a call or more for every provider"):
        measuring.measure({"a": []}, "cpu", seconds=1)


def test_ceilings_of_this_machine():
    found = measuring.ceilings("cpu", quick=True)
    assert found.flop_per_s > 1e9
    assert found.bytes_per_s > 1e8


def test_cases_without_time_are_rows_too(tmp_path, capsys):
    path = tmp_path / "results.csv"
    arguments = ["--op=user_item_linear", "--device=cpu", "--seconds=0", f"--results={path}"]
    assert run.main(arguments) == 0
    rows = results.read(path)
    assert [(row["provider"], row["note"]) for row in rows] == [(OURS, "not run: no time left")] * len(rows)
    assert "no time left for 4 cases: raise --seconds 0" in capsys.readouterr().out


def test_cases_share_the_time_that_is_left():
    clock = iter([0.0, 0.0, 6.0, 20.0]).__next__
    shares = [share for *_, share in timing.within([(None, n) for n in range(4)], 10, clock)]
    assert shares == [10 / 4 / 2, 4 / 3 / 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op=nonsense"], "unknown operator 'nonsense'"),
        (["--shape=nonsense"], "nothing to do"),
        (["exactness", "--shard=4/4"], "--shard 4/4: expected I/N with I < N"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    assert run.main([*arguments, "--device=cpu"]) == 2
    assert message in capsys.readouterr().err


def test_it_needs_torch_and_numpy_alone():
    code = (
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'feedworks', 'click', 'pandas', 'lightning'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = ['run.py', 'list', '--device=cpu']\n"
        "runpy.run_path('kernels/bench/run.py', run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "residual_quantize forward D 64" in result.stdout


def test_a_peer_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(residual_quantize.importlib.util, "find_spec", lambda name: None)
    code, rows = quick(tmp_path, "--op=residual_quantize")
    assert code == 0
    notes = {row["provider"]: row["note"] for row in rows}
    assert notes["faiss_flat"] == "not run: faiss is not installed"


def test_make_bench_is_this_bench_and_a_name_is_a_papers_own():
    command = ["make", "-n", "bench", "-o", ".venv/.installed"]
    environment = {name: value for name, value in os.environ.items() if name != "NAME"}
    for name, expected in ([], "kernels/bench/run.py"), (["NAME=mari"], "-m feedworks.mari.bench layer"):
        done = subprocess.run(
            [*command, *name], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def halt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(run._COMMANDS, "list", halt)
    assert run.main(["list", "--device=cpu"]) == 130
    assert capsys.readouterr().err.strip() == "stopped; rows written before this case are kept"
