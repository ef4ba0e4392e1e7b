"""Each ranker learns what is planted; a run goes on where it was cut off; metrics are those of the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedworks.contracts.ranking import read_fields
from feedworks.contracts.synthetic_ranking import planted_parts, write_synthetic_ranking
from feedworks.errors import ConfigError, ModelError
from feedworks.mari.config import RankerConfig
from feedworks.mari.data import Rows, read_rows, schema_of
from feedworks.mari.rankers import build_ranker
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.mari.training import quality, score_rows, train_ranker
from feedworks.metrics.classification import auc, grouped_auc, log_loss
from feedworks.training.settings import TrainConfig

ARCHS = ("mlp", "mmoe", "din", "dcn", "ppnet")
WORLD = {"num_users": 60, "num_items": 40, "num_rows": 12_000}
CONFIG = TrainConfig(epochs=6, batch_size=256, lr=1e-2, checkpoint_every_s=1e9, accelerator="cpu")
RANKER = RankerConfig(width=8, hidden=(32, 16), expert_hidden=(16,), attention=(16,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic_ranking(tmp_path_factory.mktemp("ranking"), **WORLD)


@pytest.fixture(scope="module")
def splits(folder):
    return {split: read_rows(folder, split) for split in ("train", "valid", "test")}


def trained(folder, splits, tmp_path, arch="mlp", config=CONFIG, **arguments):
    schema = schema_of(read_fields(folder), history=arch == "din")
    model = build_ranker(replace(RANKER, arch=arch), schema)
    result = train_ranker(
        model, schema, splits["train"], splits["valid"], config, tmp_path / "state", **arguments
    )
    return model, schema, result


@pytest.mark.parametrize("arch", ARCHS)
def test_a_ranker_learns_what_is_planted(folder, splits, tmp_path, arch):
    model, schema, result = trained(folder, splits, tmp_path, arch)
    label = splits["test"].label_B.numpy()
    found = auc(label, score_rows(model, schema, splits["test"]))
    parts = planted_parts("test", **WORLD)
    fields_alone = auc(label, parts.popularity + parts.context)
    assert found > fields_alone + 0.03  # taste, which is the user's and the item's together
    assert found < auc(label, parts.logit)
    assert result.best_metric == max(row["valid/auc"] for row in result.history)
    assert not model.training


def test_din_learns_from_the_history_what_the_others_cannot_see(folder, splits, tmp_path):
    model, schema, _ = trained(folder, splits, tmp_path, "din")
    rows, history = splits["test"], planted_parts("test", **WORLD).history
    empty = rows._replace(history_BL=torch.zeros_like(rows.history_BL))
    gained = score_rows(model, schema, rows) - score_rows(model, schema, empty)
    taken = (rows.history_BL > 0).any(dim=1).numpy()
    assert auc(history[taken] > 0, gained[taken]) > 0.6


def test_the_model_ends_with_the_weights_of_the_best_epoch(folder, splits, tmp_path):
    model, schema, result = trained(folder, splits, tmp_path, config=replace(CONFIG, epochs=40, patience=2))
    valid = splits["valid"]
    assert len(result.history) < 40
    assert result.best_epoch == len(result.history) - 3
    assert auc(valid.label_B.numpy(), score_rows(model, schema, valid)) == result.best_metric


def test_a_run_goes_on_to_the_same_bits(folder, splits, tmp_path):
    whole, _, _ = trained(folder, splits, tmp_path / "whole")
    kept = replace(CONFIG, checkpoint_every_s=0)

    class CutOffError(Exception):
        pass

    class Cut(type(splits["train"])):
        reads = 0

        def chosen(self, rows):
            Cut.reads += 1
            if Cut.reads == 100:
                raise CutOffError
            return super().chosen(rows)

    cut = splits | {"train": Cut(*splits["train"])}
    with pytest.raises(CutOffError):
        trained(folder, cut, tmp_path / "cut", config=kept)
    again, _, _ = trained(folder, splits, tmp_path / "cut", config=kept)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(ConfigError, match=r"lr=0.01 \(now 0.001\); remove the folder"):
        trained(folder, splits, tmp_path / "cut", config=replace(CONFIG, lr=1e-3))


def test_the_l2_term_pulls_the_embeddings_and_nothing_else(folder, splits, tmp_path):
    norms = {}
    for strength in (0.0, 0.05):
        model, _, result = trained(folder, splits, tmp_path / str(strength), embedding_l2=strength)
        norms[strength] = float(model.embedding.table.weight.detach().square().sum())
        last = result.history[-1]
        assert (last["train/loss"] > last["train/entropy"]) == (strength > 0)
    assert norms[0.05] < norms[0.0] / 2


def test_a_learning_rate_that_breaks_training_is_told(folder, splits, tmp_path):
    broken = splits["train"]._replace(label_B=torch.full_like(splits["train"].label_B, float("nan")))
    with pytest.raises(ModelError, match="training broke down"):
        trained(folder, splits | {"train": broken}, tmp_path)


def test_quality_is_that_of_the_rows(splits):
    rows = splits["test"]
    logit = np.random.default_rng(0).standard_normal(rows.num_rows) + rows.label_B.numpy()
    found = quality(rows, logit, num_samples=50)
    label = rows.label_B.numpy()
    assert found["auc"].mean == auc(label, logit)
    assert found["auc"].low < found["auc"].mean < found["auc"].high
    assert found["log_loss"].mean == log_loss(label, logit)
    assert found["user_auc"].mean == grouped_auc(label, logit, rows.user_BU[:, 0].numpy())[0]
    alone = Rows(torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor([[0], [1]]), None)
    assert set(quality(alone, [1.0, 2.0], num_samples=5)) == {"auc", "log_loss"}


def test_the_same_seed_builds_the_same_ranker_and_another_another(folder):
    schema = schema_of(read_fields(folder), history=False)
    first, again, other = (build_ranker(RANKER, schema, seed=seed) for seed in (1, 1, 2))
    weights = [model.embedding.table.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


IDS = {"dtype": "int64", "shape": (2,), "sizes": (4,)}
USER, ITEM = ModelInput(name="user", side="user", **IDS), ModelInput(name="item", side="item", **IDS)
HISTORY = ModelInput(name="history", side="user", **IDS)
NUMBER = ModelInput(name="user_number", side="user", shape=(3,))


def test_numbers_and_one_size_for_all_fields():
    schema = RankerSchema(inputs=(USER, ITEM, NUMBER), outputs=("click", "like"))
    model = build_ranker(replace(RANKER, arch="mmoe"), schema)
    ids = torch.tensor([[3, 3]])
    assert model.eval()(ids, ids, torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arch", "inputs", "problem"),
    [
        (
            "mlp",
            (USER, ITEM, HISTORY),
            "takes the inputs user and item, and of user_number, item_number",
        ),
        (
            "din",
            (USER, ITEM, NUMBER, HISTORY),
            "the schema has user, item, user_number, history",
        ),
        ("mlp", (ITEM, USER), "the schema has item, user"),
        ("mlp", (ITEM,), "the schema has item"),
        ("mlp", (ModelInput(name="user", side="user"), ITEM), "input user: a ranker of this house takes ids"),
    ],
)
def test_a_schema_that_a_ranker_cannot_take(arch, inputs, problem):
    with pytest.raises(ModelError, match=problem):
        build_ranker(replace(RANKER, arch=arch), RankerSchema(inputs=inputs))
