"""The packaged folder: all that serving needs, a card with the numbers, and a tag that names the content."""

from __future__ import annotations

import torch

from feedworks.recochain.packaging import FILES, intervals, write_package
from feedworks.storage import read_json

from . import small

STATS = {"num_users": 1, "num_items": 40, "num_events": 2}


def package(folder, *, seed: int = 0, metrics=None) -> str:
    folder.mkdir()
    catalogue = small.catalogue()
    catalogue.save(folder)
    (folder / "tokenizer.safetensors").write_bytes(b"codebooks")
    return write_package(folder, small.model(catalogue, seed=seed), small.quick(), metrics or {}, STATS)


def test_equal_models_have_equal_tags_and_others_do_not(tmp_path):
    tags = [package(tmp_path / "a"), package(tmp_path / "b"), package(tmp_path / "c", seed=1)]
    assert tags[0] == tags[1] != tags[2]
    # Metrics describe a model and do not change it.
    assert package(tmp_path / "d", metrics={"test/rerank/recall@5": 0.5}) == tags[0]


def test_the_folder_holds_what_the_card_says(packaged_model, finished_run):
    assert {path.name for path in packaged_model.iterdir()} == {*FILES, "README.md"}
    card = (packaged_model / "README.md").read_text()
    facts = read_json(packaged_model / "config.json")
    assert facts["extra"]["tag"] in card
    assert facts["extra"]["metrics"] == read_json(finished_run / "metrics.json")
    for said in ("2604.25787", "150 users, 100 items", "never recommended", "| rerank |", "search.beam"):
        assert said in card


def test_intervals_are_read_back_from_flat_metrics():
    metrics = {
        "test/rerank/recall@5": 0.5,
        "test/rerank/recall@5/ci_low": 0.4,
        "test/rerank/recall@5/ci_high": 0.6,
        "test/rerank/coverage@10": 0.9,
        "test/rerank_gain/recall@5": 0.1,
        "test/rerank_gain/recall@5/ci_low": 0.0,
        "test/rerank_gain/recall@5/ci_high": 0.2,
    }
    assert intervals(metrics, "test/rerank") == {"recall@5": (0.5, 0.4, 0.6)}


def test_weights_in_the_folder_are_those_of_the_model(tmp_path):
    from feedworks.training.checkpoint import load_tensors

    package(tmp_path / "a")
    for name, value in small.model(small.catalogue()).state_dict().items():
        assert torch.equal(load_tensors(tmp_path / "a")[name], value)
