import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from feedworks.errors import ConfigError
from feedworks.ksa import learn_recall, learning, stages
from feedworks.ksa.arms import architecture
from feedworks.ksa.corpus import TokenFile
from feedworks.ksa.data import Windows
from feedworks.ksa.learn_bench import learn
from feedworks.ksa.learn_recall import recall, recall_plan
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.recall import out_of_reach, recall_batch

from .training import assert_same_bits, weights

SMALL = {"width": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_width": 8, "hidden": 24}


def small(plan, **stage):
    model = replace(plan.model, **SMALL, chunk=4, window=1)
    return plan._replace(model=model, stage=replace(plan.stage, **stage))


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    out = tmp_path_factory.mktemp("books")
    plan = small(learning.books_plan(20), seq_len=64)._replace(vocab_size=300, max_rows=4)
    return list(learning.books("synthetic", out, plan, arms=["full", "ksa", "window"])), out, plan


def test_recall_trains_every_attention_from_scratch_on_the_same_rows(tmp_path):
    plan = small(recall_plan(4))._replace(num_measured=4)
    rows = list(recall(tmp_path, plan, arms=["full", "ksa", "window"]))
    assert [(row["arm"], row["steps"]) for row in rows] == [("full", 4), ("ksa", 4), ("window", 4)]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    # A run that is done is not done again.
    again = list(recall(tmp_path, plan, arms=["full", "ksa", "window"]))
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows]


def test_the_needle_of_the_plan_lies_beyond_all_windows_together():
    plan = recall_plan()
    model, task = plan.model, plan.measured
    assert model.full_every == 0
    assert task.gap >= out_of_reach(num_layers=model.num_layers, window=model.window, chunk=model.chunk)
    assert not task.repeats
    assert not task.name_keys
    assert task.num_queries == task.num_pairs


def test_the_books_give_each_loss_and_its_share_of_full_attention(books):
    rows, _, _ = books
    full, *others = rows
    assert full["valid_loss_of_full"] == full["test_loss_of_full"] == 1
    for row in others:
        assert row["valid_loss"] == pytest.approx(row["valid_loss_of_full"] * full["valid_loss"])
        assert row["steps"] == full["steps"] == 20


def test_a_folder_keeps_to_its_data(books, tmp_path):
    _, out, plan = books
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"holds tokens of .*synthetic, not of .*other"):
        next(learning.books(str(other), out, plan))


def test_a_conversion_begins_where_the_books_ended_and_takes_a_fifth_of_the_steps(books):
    (full, *_), out, plan = books
    rows = list(learning.conversion("synthetic", out, plan))
    assert [row["arm"] for row in rows] == ["full", "untrained", "distil", "anneal"]
    assert rows[0]["valid_loss"] == full["valid_loss"]
    assert sum(row.get("share_of_steps", 0) for row in rows) <= 0.2
    model = learning.load(out / "converted-0")
    assert not model.config.summary_projections
    assert all(torch.isfinite(x).all() for x in model.state_dict().values())


def test_the_command_writes_a_row_for_each_model_and_keeps_those_of_other_seeds(tmp_path):
    arguments = [
        "--what",
        "recall",
        "--out",
        str(tmp_path),
        "--steps",
        "1",
        "--arm",
        "chunk",
        "--threads",
        "1",
    ]
    for seeds in ((), ("--seed", "1"), ("--seed", "1")):
        assert CliRunner().invoke(learn, [*arguments, *seeds], catch_exceptions=False).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "recall.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["seed"]) for row in rows] == [("chunk", 0), ("chunk", 1)]
    (tmp_path / "recall.jsonl").write_text("no row")
    result = CliRunner().invoke(learn, arguments)
    assert (result.exit_code, "is damaged" in result.output) == (1, True)
    assert (tmp_path / "recall.jsonl").read_text() == "no row"


@pytest.mark.parametrize(
    "wrong", [("--steps", "0"), ("--seed", "-1"), ("--threads", "0"), ("--full-every", "2")]
)
def test_wrong_options_are_told_before_anything_is_written(tmp_path, wrong):
    result = CliRunner().invoke(learn, ["--what", "recall", "--out", str(tmp_path / "out"), *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"), [((), "needs --data"), (("--data", "/nowhere"), "no such folder")]
)
def test_wrong_data_is_one_line(tmp_path, data, message):
    result = CliRunner().invoke(learn, ["--what", "books", "--out", str(tmp_path), *data])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert isinstance(result.exception, SystemExit)


def test_the_books_train_as_a_stage_with_a_full_start_does(books, tmp_path):
    _, out, plan = books
    file = TokenFile(out / "tokens" / "train")
    full = learning.fresh("full", plan.model, 0, vocab_size=file.vocab_size)
    model = Qwen3KsaForCausalLM(architecture("ksa", plan.model, vocab_size=file.vocab_size))
    model.load_state_dict(full.state_dict(), strict=False)
    cfg = learning.of_seed(plan.stage, 0)
    stages.pretrain(model, Windows(file.tokens, cfg.seq_len, cfg.training.seed), cfg, tmp_path)
    assert_same_bits(weights(learning.load(out / "ksa-0")), weights(model))


def test_recall_draws_other_rows_for_each_step_each_seed_and_the_measure(tmp_path, monkeypatch):
    drawn = []

    def noted(task, batch_size, *name):
        drawn.append((task, name))
        return recall_batch(task, batch_size, *name)

    monkeypatch.setattr(learn_recall, "recall_batch", noted)
    plan = small(recall_plan(3))._replace(num_measured=4)
    list(recall(tmp_path, plan, arms=["window"], seeds=(0, 1)))
    learned, measured = (
        {name for other, name in drawn if other == task} for task in (plan.lesson, plan.measured)
    )
    assert (len(learned), len(measured)) == (2 * 3, 2)
    assert not learned & measured
