"""Whole runs: repeated, gone on with after a kill, kept back by the gate, and on models from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from feedworks.errors import ConfigError, DataError, FeedworksError, ModelError
from feedworks.mari import chain, config
from feedworks.mari.schema import RankerSchema
from feedworks.mari.twin import Twin
from feedworks.storage import read_json

from . import theirs
from .conftest import QUICK

TRAINED = [*QUICK, "ranker.arch=din"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(data: Path | None, out: Path, *overrides: str) -> dict[str, float]:
    return chain.run(data, out, config.resolve("tiny", overrides))


def test_a_run_proves_its_twin_equal_and_packages_it(trained_run: Path) -> None:
    metrics = read_json(trained_run / "metrics.json")
    assert metrics["equal/passed"] == 1
    assert metrics["equal/float32/error"] < 1e-5
    assert metrics["graph/num_cut"] >= 2  # the activation unit and the first dense layer
    assert metrics["flops/products/ratio@100"] > 1
    assert metrics["test/twin/auc"] == pytest.approx(metrics["test/original/auc"], abs=1e-6)
    for method in ("original", "twin", "logistic", "item_rate"):
        low, high = (metrics[f"test/{method}/auc/ci_{side}"] for side in ("low", "high"))
        assert 0 < low <= metrics[f"test/{method}/auc"] <= high < 1
    assert (trained_run / "report.html").is_file()
    assert {row["variant"] for row in read_json(trained_run / "bench.json")["rows"]} == {
        "vani",
        "uoi",
        "mari",
        "mari_fragmented",
    }
    assert read_json(trained_run / "model" / "package.json")["tag"].startswith("mari:")


def test_the_same_run_again_does_nothing_and_a_fresh_one_gives_the_same_model(
    ranking_data: Path, trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "again")
    run(ranking_data, tmp_path / "again", *TRAINED)
    assert capfd.readouterr().err.count("already done") == 7
    assert contents(tmp_path / "again") == contents(trained_run)
    run(ranking_data, tmp_path / "fresh", *TRAINED)
    assert (tmp_path / "fresh" / "metrics.json").read_bytes() == (trained_run / "metrics.json").read_bytes()
    assert contents(tmp_path / "fresh" / "model") == contents(trained_run / "model")


RUN = (
    "import sys; from pathlib import Path; from feedworks.mari import chain, config;"
    "chain.run(Path(sys.argv[1]), Path(sys.argv[2]), config.resolve('tiny', sys.argv[3:]))"
)


def test_killed_while_it_trains_and_started_again_it_ends_with_the_same_model(
    ranking_data: Path, trained_run: Path, tmp_path: Path
) -> None:
    overrides = [*TRAINED, "training.checkpoint_every_s=0"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(ranking_data), str(tmp_path), *overrides],
        env=env,
        stderr=subprocess.DEVNULL,
    )
    give_up_s = time.monotonic() + 120
    while not list(tmp_path.glob("work/runs/*/ranker.state/step-*")):
        assert process.poll() is None
        assert time.monotonic() < give_up_s
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("work/runs/*/ranker"))
    run(ranking_data, tmp_path, *overrides)
    for name in ("twin/one.pt2", "twin/many.pt2"):
        assert (tmp_path / "model" / name).read_bytes() == (trained_run / "model" / name).read_bytes()


def test_a_speed_up_that_is_not_reached_keeps_the_twin_back(
    outside: list[str], outside_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(outside_run, tmp_path / "out")
    run(None, tmp_path / "out", *outside, "gate.min_speedup=1000")
    said = capfd.readouterr().err
    assert "times as fast as one-shot inference, gate.min_speedup is 1000" in said
    assert "the gate kept the model back" in said
    assert (tmp_path / "out" / "rejected" / "report.html").is_file()
    assert contents(tmp_path / "out" / "model") == contents(outside_run / "model")


def test_an_auc_that_is_not_reached_keeps_the_twin_back(ranking_data: Path, tmp_path: Path) -> None:
    run(ranking_data, tmp_path, *QUICK, "gate.min_auc=0.999")
    assert (tmp_path / "metrics.json").is_file()
    assert not (tmp_path / "model").exists()


def test_a_twin_with_one_wrong_weight_is_not_packaged(
    outside: list[str], outside_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(outside_run, tmp_path / "out")
    (work,) = (tmp_path / "out" / "work" / "runs").iterdir()
    twin = Twin.load(work / "twin" / "twin")
    largest = max(twin.buffers(), key=lambda tensor: tensor.numel())
    with torch.no_grad():
        largest.view(-1)[7] += 0.1
    for program in twin.programs:
        for name, tensor in program.state_dict.items():
            tensor.copy_(twin.get_buffer(name.rpartition(".")[2]))
    twin.save(work / "twin" / "twin")
    for step in ("verdict", "evaluation", "model"):
        shutil.rmtree(work / step)
    shutil.rmtree(tmp_path / "out" / "model")
    metrics = run(None, tmp_path / "out", *outside)
    assert metrics["equal/passed"] == 0
    assert metrics["equal/float32/error"] > 1e-3
    assert "the twin does not score as its model does" in capfd.readouterr().err
    assert not (tmp_path / "out" / "model").exists()
    assert "no" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_from_outside_goes_the_same_way(outside_run: Path) -> None:
    metrics = read_json(outside_run / "metrics.json")
    assert (metrics["equal/passed"], metrics["graph/num_cut"]) == (1, 1)
    assert not [key for key in metrics if key.startswith("test/")]
    schema = RankerSchema.read(outside_run / "model" / "sides.json")
    assert schema.outputs == ("click", "buy")
    twin = Twin.load(outside_run / "model" / "twin")
    model = theirs.build().eval()
    profile, item, match = torch.randn(1, 60), torch.arange(5), torch.randn(5, 4)
    with torch.no_grad():
        expected = model(profile.expand(5, -1), item, match)
        torch.testing.assert_close(twin(profile, item, match), expected, rtol=1e-5, atol=1e-6)


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feedworks.mari.outside import load_outside, source_file

    shutil.copy(theirs.__file__, tmp_path / "a_model_of_theirs.py")
    monkeypatch.chdir(tmp_path)
    assert source_file("a_model_of_theirs:build") == tmp_path / "a_model_of_theirs.py"
    assert not load_outside("a_model_of_theirs:build").training
    assert str(tmp_path) not in sys.path


def test_another_model_behind_the_same_name_is_another_run(outside_run: Path, tmp_path: Path) -> None:
    code, sides = tmp_path / "code.py", theirs.write_sides(tmp_path / "sides.json")
    code.write_text(Path(theirs.__file__).read_text())
    overrides = [*QUICK, f"outside.model={code}:build", f"outside.sides={sides}"]
    key = chain._key(None, config.resolve("tiny", overrides))
    code.write_text(code.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    assert chain._key(None, config.resolve("tiny", overrides)) != key


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("absent.py:build", "no file absent.py"),
        ("no_such_module_anywhere:build", "cannot be imported .ModuleNotFoundError"),
        ("THEIRS:nothing", "no callable 'nothing'"),
        ("THEIRS:SIDES", "no callable 'SIDES'"),
        ("THEIRS:fails", "it failed .RuntimeError: no weights to be found"),
        ("THEIRS:a_number", "it returned a int, expected a torch module"),
        ("THEIRS:with_nan", "its scores are not finite"),
        ("THEIRS:Noisy", "in two ways"),
        ("THEIRS:OneOutput", r"it returns \(4, 1\) for 4 candidates; the sides file names 2 outputs"),
        ("THEIRS:CountsRows", "cannot be exported"),
        ("THEIRS:InAnotherOrder", "returns buy, click; the sides file names its outputs click, buy"),
        ("THEIRS:Branches", "graph has cond"),
        ("THEIRS:Remembers", "writes to calls when it scores"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line(
    outside: list[str], tmp_path: Path, reference: str, said: str
) -> None:
    reference = reference.replace("THEIRS", theirs.__file__)
    with pytest.raises(ModelError, match=said) as caught:
        run(None, tmp_path, *outside, f"outside.model={reference}")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "cannot be read as JSON"),
        ('{"inputs": []}', "inputs: "),
        ('"side": "usr"', "inputs.0.side"),
        ('"name": "profil"', "forward takes profile, item, match; the sides file names profil, item"),
        (None, "no such file"),
    ],
)
def test_a_sides_file_that_cannot_be_used_is_one_line(
    outside: list[str], tmp_path: Path, change: str | None, said: str
) -> None:
    sides = theirs.write_sides(tmp_path / "sides.json")
    if change is None:
        sides.unlink()
    elif change.startswith("{"):
        sides.write_text(change)
    else:
        key = change.partition(":")[0]
        old = {'"side"': '"side": "user"', '"name"': '"name": "profile"'}[key]
        sides.write_text(sides.read_text().replace(old, change, 1))
    with pytest.raises(FeedworksError, match=said) as caught:
        run(None, tmp_path, *outside, f"outside.sides={sides}")
    assert len(str(caught.value).splitlines()) == 1


def test_half_of_an_outside_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="go together"):
        config.resolve("tiny", ["outside.model=a:b"])


def test_no_data_and_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data to train"):
        run(None, tmp_path)
