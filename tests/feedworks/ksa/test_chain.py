"""All steps of a run in one process, on planted tales: from scratch, and converted from full attention."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from feedworks.contracts.synthetic_text import write_synthetic_text
from feedworks.errors import DataError, ModelError
from feedworks.ksa import chain, steps
from feedworks.ksa.checkpoint import as_qwen3, load, save
from feedworks.ksa.config import KsaConfig, resolve
from feedworks.ksa.evaluation import shortcomings
from feedworks.storage import write_json

QUICK = (
    "corpus.vocab_size=600",
    "needles.tasks=single,frequent",
    "needles.lengths=112,144",
    "needles.train_rows=8",
    "evaluation.seq_len=144",
    "evaluation.buckets=32",
    "evaluation.max_rows=4",
    "evaluation.decode_tokens=60",
    "evaluation.cache_lengths=4096",
    "evaluation.max_new_tokens=4",
    *(f"{stage}.seq_len=144" for stage in ("pretrain", "distil", "anneal")),
    *(f"{stage}.steps_per_epoch=2" for stage in ("pretrain", "distil", "anneal", "extend")),
    "extend.lengths=192",
)


def settings(*overrides: str) -> KsaConfig:
    return resolve("tiny", [*QUICK, *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tales")
    write_synthetic_text(folder, num_documents=12, num_words=800, seed=1)
    return folder


@pytest.fixture(scope="module")
def scratch(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scratch")
    chain.run(data, out, settings("baselines=full,window"))
    return out


@pytest.fixture(scope="module")
def converted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    chain.run(data, out, settings("mode=convert", "baselines=full"))
    return out


def metrics_of(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return found


def made(out: Path, name: str) -> Path:
    (path,) = (out / "work" / "runs").glob(f"*/{name}")
    return path


@pytest.mark.parametrize("run", ["scratch", "converted"])
def test_a_run_writes_metrics_report_and_model(run: str, request: pytest.FixtureRequest) -> None:
    out = request.getfixturevalue(run)
    metrics = metrics_of(out)
    assert 0.9 < metrics["ratio/full/loss"] < 1.1
    assert (
        metrics["ratio/full/loss/ci_low"] <= metrics["ratio/full/loss"] <= metrics["ratio/full/loss/ci_high"]
    )
    assert metrics["decode/ksa/error"] < 1e-4
    assert 0 <= metrics["cache/ksa/slack@4096"] < 0.05
    assert metrics["cache/ksa/formula_ratio@4096"] > 2
    assert metrics["position/ksa/perplexity@32"] > 1
    page = (out / "report.html").read_text()
    for said in ("Perplexity by position", "one needle", "Bytes of the cache", "full attention"):
        assert said in page
    model = load(out / "model")
    assert model.config.summaries == 1
    assert not any(made(out, ".").glob("*.state")), "states are gone when a stage is done"


@pytest.mark.parametrize("name", ["seq_len", "decode_tokens"])
def test_a_text_too_short_to_be_measured_is_told_before_the_training(name: str, tmp_path: Path) -> None:
    short = tmp_path / "short"
    write_synthetic_text(short, num_documents=10, num_words=60, seed=1)
    cfg = settings(f"evaluation.{name}=1000", "model.max_length=1024", "corpus.vocab_size=300")
    said = rf"less than a row of 1000; bring more text or lower evaluation\.{name}$"
    with pytest.raises(DataError, match=said):
        steps.prepare_corpus(short, tmp_path / "corpus", cfg)
    assert not (tmp_path / "corpus").exists()


def test_arms_are_trained_on_the_same_steps_and_named(scratch: Path) -> None:
    metrics = metrics_of(scratch)
    for arm in ("ksa", "full", "window"):
        assert {f"heldout/{arm}/loss", f"needle/{arm}/exact"} <= set(metrics)
    assert "needle/ksa/recall" in metrics
    assert "needle/full/recall" not in metrics
    history = json.loads((made(scratch, "extended") / "training.json").read_text())
    assert list(history) == ["extend to 192", "from scratch"]
    for arm in ("full", "window"):
        of_arm = json.loads((made(scratch, f"baselines/{arm}") / "training.json").read_text())
        assert [[row["step"] for row in of_arm[name]] for name in history] == [
            [row["step"] for row in history[name]] for name in history
        ]
    assert history["from scratch"][-1]["step"] == 4


def test_a_conversion_goes_through_three_stages_from_a_qwen3_checkpoint(converted: Path) -> None:
    base = json.loads((made(converted, "pretrained") / "config.json").read_text())
    assert base["model_type"] == "qwen3"
    distilled, annealed = load(made(converted, "distilled")), load(made(converted, "annealed"))
    assert any("_summary." in name for name in distilled.state_dict())
    assert not any("_summary." in name for name in annealed.state_dict())
    history = json.loads((made(converted, "extended") / "training.json").read_text())
    assert set(history) == {"from scratch", "distil", "anneal", "extend to 192"}
    extended = load(made(converted, "extended")).config
    assert extended.rope_parameters["rope_theta"] == pytest.approx(1e4 * 192 / 144)


def test_distillation_leaves_the_base_as_it_was(converted: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(made(converted, "pretrained") / "model.safetensors")
    distilled = load(made(converted, "distilled")).state_dict()
    assert all(torch.equal(tensor, distilled[name]) for name, tensor in base.items())


def test_a_checkpoint_from_outside_is_converted(converted: Path, data: Path, tmp_path: Path) -> None:
    outside = shutil.copytree(made(converted, "pretrained"), tmp_path / "qwen3")
    for path in (made(converted, "corpus") / "tokenizer").iterdir():
        shutil.copyfile(path, outside / path.name)
    words = ("mode=convert", f"base.folder={outside}", "baselines=", "extend.lengths=")
    metrics = chain.run(data, tmp_path / "out", settings(*words))
    assert set(load(tmp_path / "out" / "model").config.layer_windows) == {4, None}
    assert metrics["heldout/full/loss"] == metrics_of(converted)["heldout/full/loss"]


def test_a_checkpoint_in_bfloat16_is_trained_in_float32(converted: Path, tmp_path: Path) -> None:
    outside = tmp_path / "qwen3"
    outside.mkdir()
    save(as_qwen3(load(made(converted, "distilled"), dtype=torch.bfloat16)), outside)
    cfg = settings("mode=convert", f"base.folder={outside}", "extend.lengths=")
    folders = [made(converted, name) for name in ("corpus", "needles")]
    steps.pretrain(*folders, tmp_path / "pretrained", cfg)
    steps.distil(*folders, tmp_path / "pretrained", tmp_path / "distilled", cfg)
    steps.anneal(*folders, tmp_path / "distilled", tmp_path / "annealed", cfg)
    before, after = (load(tmp_path / name).state_dict() for name in ("distilled", "annealed"))
    assert {x.dtype for x in (*before.values(), *after.values())} == {torch.float32}
    assert all(not torch.equal(x, before[name]) for name, x in after.items() if x.numel() > 100)


def test_a_stage_tells_the_loss_of_the_weights_that_it_wrote(scratch: Path, tmp_path: Path) -> None:
    words = ("pretrain.training.epochs=3", "pretrain.training.eval_every=2", "baselines=")
    folders = [made(scratch, name) for name in ("corpus", "needles")]
    found = steps.pretrain(*folders, tmp_path / "pretrained", settings(*words))
    history = json.loads((tmp_path / "pretrained" / "training.json").read_text())["from scratch"]
    assert found.valid_loss == min(row["valid/loss"] for row in history if "valid/loss" in row)


def test_without_a_checkpoint_nothing_is_converted(tmp_path: Path) -> None:
    cfg = settings("mode=convert", f"base.folder={tmp_path}")
    with pytest.raises(ModelError, match=r"config\.json is missing: expected the folder of a qwen3 model"):
        steps.pretrain(tmp_path, tmp_path, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_finished_steps_are_not_done_again(
    data: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (scratch / "metrics.json").read_bytes()
    shutil.rmtree(made(scratch, "evaluation"))
    capsys.readouterr()
    chain.run(data, scratch, settings("baselines=full,window"))
    said = capsys.readouterr().err
    assert "pretrain: already done" in said
    assert "evaluate: done" in said
    assert (scratch / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("ratio/full/loss", 3.0, "gate.max_loss_ratio=2"),
        ("decode/ksa/error", 0.5, "gate.max_decode_error=0.001"),
        ("cache/ksa/slack@4096", 0.06, "gate.max_cache_slack=0.05"),
        ("needle/ksa/recall", -0.1, "gate.min_needle=0"),
        ("decode/ksa/error", None, ""),
    ],
)
def test_each_gate_is_seen_to_close(
    scratch: Path, tmp_path: Path, metric: str, value: float | None, said: str
) -> None:
    metrics = metrics_of(scratch)
    write_json(tmp_path / "metrics.json", metrics if value is None else metrics | {metric: value})
    found = shortcomings(tmp_path, settings())
    assert [said in text for text in found] == ([True] if value is not None else [])
    assert steps.passes_gate(tmp_path, settings()) == (value is None)


def test_a_closed_gate_packages_nothing(data: Path, scratch: Path, tmp_path: Path) -> None:
    cfg = settings("baselines=full,window")
    shutil.copytree(scratch, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model")
    (run,) = (tmp_path / "work" / "runs").iterdir()
    shutil.rmtree(run / "model")
    metrics = metrics_of(tmp_path)
    write_json(run / "evaluation" / "metrics.json", metrics | {"decode/ksa/error": 1.0})
    chain.run(data, tmp_path, cfg)
    assert not (tmp_path / "model").exists()
