"""Two processes under torchrun follow the losses of one, step by step, in every paper that trains by fit.

The settings are those of `tiny`, dropout included, on small data whose last batches are smaller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from feedworks.datasets.folder import WRITERS
from feedworks.papers import PAPERS

from . import curves

MAX_DIFFERENCE = 1e-5
STRATEGIES = ("ddp", "fsdp")
RECOCHAIN = ("joint.batch_size=24", "generator.batch_size=24", "evaluation.monitor_users=20")
KSA = (
    "corpus.vocab_size=600",
    "needles.tasks=single,frequent",
    "needles.lengths=112",
    "needles.train_rows=8",
    "evaluation.seq_len=144",
    "evaluation.max_rows=4",
    "evaluation.decode_tokens=60",
    "pretrain.seq_len=144",
    "pretrain.steps_per_epoch=5",
)


class Step(NamedTuple):
    """A step that trains: the settings of its loop, its inputs, and overrides for it and the steps before."""

    paper: str
    name: str
    training: str
    inputs: tuple[str, ...]
    overrides: tuple[str, ...]


STEPS = {
    step.name: step
    for step in (
        Step(
            "recochain",
            "train_generator",
            "generator",
            ("prepared", "sids"),
            (*RECOCHAIN, "generator.epochs=2"),
        ),
        Step(
            "mari",
            "make_ranker",
            "training",
            ("data",),
            ("training.epochs=2", "training.batch_size=90", "ranker.dropout=0.2", "ranker.embedding_l2=0.01"),
        ),
        Step("ocarm", "train_teacher", "teacher", ("observables", "content"), ("teacher.epochs=2",)),
        Step("ksa", "pretrain", "pretrain.training", ("corpus", "needles"), KSA),
        # Their losses have means over other things than rows.
        Step(
            "recochain",
            "train_joint",
            "joint",
            ("prepared", "sids", "generator", "candidates"),
            (*RECOCHAIN, "generator.epochs=1", "joint.epochs=3"),
        ),
        Step("recochain", "train_baseline", "sasrec_training", ("prepared",), ("sasrec_training.epochs=3",)),
        Step("ocarm", "train_student", "student", ("observables", "vectors"), ("student.epochs=2",)),
    )
}
FIRST = ("train_generator", "make_ranker")
REST = tuple(name for name in STEPS if name not in FIRST)


def prepare(name: str, folder: Path) -> list[Path]:
    """Make the inputs of a step in one process."""
    step = STEPS[name]
    paper = PAPERS[step.paper]
    cfg = paper.part("config").resolve("tiny", step.overrides)
    steps = paper.part("steps")
    sizes = {
        "interactions": {"num_users": 100, "num_items": 80},
        "ranking": {"num_users": 60, "num_items": 50, "num_rows": 1200},
        "retention": {"num_users": 250, "num_items": 300},
        "text": {"num_documents": 12, "num_words": 800},
    }[paper.data]
    data = folder / "data"
    WRITERS[paper.data](data, seed=1, **sizes)
    at = {each: folder / each for each in step.inputs} | {"data": data}
    if step.paper == "recochain":
        prepared = folder / "prepared"
        steps.prepare(data, prepared, cfg)
        if "sids" in at:
            steps.fit_tokenizer(prepared, folder / "tokenizer", cfg)
            steps.assign_ids(prepared, folder / "tokenizer", at["sids"], cfg)
        if "generator" in at:
            steps.train_generator(prepared, at["sids"], at["generator"], cfg)
            steps.mine_candidates(prepared, at["sids"], at["generator"], at["candidates"], cfg)
    elif step.paper == "ocarm":
        steps.build(data, folder / "samples", folder / "tables", cfg)
        joined = at["observables"], folder / "content"
        steps.join_features(folder / "samples", folder / "tables", *joined)
        if "vectors" in at:
            steps.train_teacher(*joined, folder / "teacher", cfg)
            steps.export_vectors(*joined, folder / "teacher", at["vectors"], cfg)
    elif step.paper == "ksa":
        steps.prepare_corpus(data, at["corpus"], cfg)
        steps.make_needles(at["corpus"], at["needles"], cfg)
    return [at[each] for each in step.inputs]


def run_jobs(names: Iterable[str], inputs: dict[str, list[Path]], folder: Path, *torchrun: str) -> None:
    """Run steps one after the other in the same processes, with torchrun in each strategy."""
    jobs = []
    for name in names:
        step = STEPS[name]
        for strategy in STRATEGIES if torchrun else ("one",):
            out = folder / name / strategy
            out.mkdir(parents=True)
            chosen = [f"{step.training}.strategy={strategy}"] if torchrun else []
            overrides = [*step.overrides, *chosen, f"{step.training}.accelerator=cpu"]
            job = {"paper": step.paper, "step": name, "overrides": overrides}
            jobs.append(job | {"inputs": list(map(str, inputs[name])), "out": str(out)})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, curves.__file__, str(folder / "jobs.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module", params=["first", pytest.param("rest", marks=pytest.mark.slow)])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME/one, NAME/ddp and NAME/fsdp for several steps."""
    folder = tmp_path_factory.mktemp(request.param)
    names = FIRST if request.param == "first" else REST
    inputs = {}
    for name in names:
        inputs[name] = prepare(name, folder / "inputs" / name)
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    run_jobs(names, inputs, folder / "one")
    run_jobs(
        names, inputs, folder / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    return folder


def differences(ran: Path) -> dict[str, float]:
    found = {}
    for one in sorted((ran / "one").glob("*/one/curve.json")):
        expected = json.loads(one.read_text())
        for strategy in STRATEGIES:
            curve = json.loads((ran / "two" / one.parts[-3] / strategy / "curve.json").read_text())
            assert len(curve) == len(expected) >= 5
            off = max(abs(first - second) for first, second in zip(expected, curve, strict=True))
            found[f"{one.parts[-3]} {strategy}, {len(curve)} steps"] = off
    return found


def test_losses_of_every_step_are_those_of_one_process(ran, record_property):
    found = differences(ran)
    assert len(found) == 2 * len(list((ran / "one").glob("*/one")))
    for name, off in found.items():
        record_property(name, off)
        print(f"{name}: largest difference {off:.1e}")
    assert max(found.values()) < MAX_DIFFERENCE, found


def test_only_the_first_process_writes(ran):
    outs = sorted((ran / "two").glob("*/*/result"))
    assert len(outs) == 2 * len(list((ran / "two").glob("*/ddp")))
    for result in outs:
        out = result.parent
        assert (out / "changed.1").read_text() == ""
        assert "result" in (out / "changed.0").read_text(), "the audit hook sees what the first one writes"
        left = {path.name for path in out.iterdir()}
        assert left == {"result", "changed.0", "changed.1", "curve.json"}, "the training state is gone"
