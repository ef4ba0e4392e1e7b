"""Named setups, overrides, and settings that cannot work."""

from __future__ import annotations

import pytest

from feedworks.configuration import flatten, from_json, to_json
from feedworks.errors import ConfigError
from feedworks.recochain.config import PRESETS, RecoChainConfig, resolve


@pytest.mark.parametrize("preset", PRESETS)
def test_a_setup_is_valid_and_reads_back(preset):
    config = resolve(preset)
    assert from_json(RecoChainConfig, to_json(config)) == config
    assert config.model.width % (2 * config.model.num_heads) == 0


def test_the_published_settings():
    paper = resolve("paper")
    assert (paper.search.beam, paper.max_history, paper.search.retrieved) == (20, 32, 10)
    assert (paper.tokenizer.levels, paper.tokenizer.codes) == (3, 8192)
    assert paper.rank.weight == 1.0
    assert paper.rank.negatives == 15


def test_overrides_reach_every_level():
    config = resolve("tiny", ["seed=4", "search.beam=7", "vectors.sources=text,given", "vectors.weights=1,2"])
    assert (config.seed, config.search.beam, config.vectors.sources) == (4, 7, ("text", "given"))
    assert flatten(config)["search.beam"] == 7
    assert resolve("tiny").search.beam != 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("min_events=2", "min_events=2: expected at least 3"),
        ("user_fraction=0", "user_fraction=0.0: expected a share"),
        ("user_fraction=1.5", "expected a share"),
        ("vectors.sources=", r"vectors\.sources"),
        ("rank.loss=hinge", r"rank\.loss"),
        ("search.normalise=all", r"search\.normalise"),
        ("search.beams=3", r"unknown setting 'search\.beams'.*search\.beam"),
        ("search.beam=many", r"search\.beam"),
    ],
)
def test_settings_that_cannot_work_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        resolve("tiny", [override])


def test_an_unknown_setup_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown preset 'huge'; known presets: tiny, small, paper"):
        resolve("huge")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: expected at least 0"),
        ("search.beam=0", "search.beam=0: expected 1 to 10000"),
        ("search.beam=100000000", "search.beam=100000000: expected 1 to 10000"),
        ("search.bucket_cap=0", "search.bucket_cap=0: expected 1 to 10000"),
        ("search.retrieved=-1", "search.retrieved=-1: expected 0 to 10000"),
        ("vectors.text_width=0", "vectors.text_width=0: expected at least 1"),
        ("vectors.collaborative_width=0", "vectors.collaborative_width=0: expected at least 1"),
        ("vectors.window=0", "vectors.window=0: expected at least 1"),
        ("vectors.shift=0", "vectors.shift=0.0: expected more than 0"),
        ("vectors.weights=-1", "vectors.weights=-1.0: expected more than 0"),
        ("tokenizer.iterations=0", "tokenizer.iterations=0: expected at least 1"),
        ("model.dropout=1", "model.dropout=1.0: expected 0 to 0.99"),
        ("items.weight=-1", "items.weight=-1.0: expected at least 0"),
        ("rank.weight=-1", "rank.weight=-1.0: expected at least 0"),
        ("sasrec.num_layers=0", "sasrec.num_layers=0: expected at least 1"),
        ("sasrec.num_heads=0", "sasrec.num_heads=0: expected at least 1"),
        ("sasrec.max_history=0", "sasrec.max_history=0: expected at least 1"),
        ("sasrec.dropout=2", "sasrec.dropout=2.0: expected 0 to 0.99"),
        ("sasrec.width=33", "sasrec.width=33: expected a multiple of num_heads = 2"),
        ("evaluation.cutoffs=5,5", "evaluation.cutoffs=.*expected rising numbers"),
        ("evaluation.cutoffs=10,5", "evaluation.cutoffs=.*expected rising numbers"),
        ("generator.seed=-1", "seed=-1: expected at least 0"),
        ("max_history=0", "max_history=0: expected at least 1"),
        ("search_history=0", "search_history=0: expected at least 1"),
        ("tokenizer.levels=0", "tokenizer.levels=0: expected at least 1"),
        ("rank.positions=0", "rank.positions=0: expected at least 1"),
        ("rank.negatives=0", "rank.negatives=0: expected at least 1"),
        ("model.width=63", "model.width=63: expected a multiple"),
        ("evaluation.cutoffs=", "evaluation.cutoffs is empty"),
        ("evaluation.sweep_beams=0,10", "evaluation.sweep_beams=0: expected 1 to 10000"),
    ],
)
def test_values_that_cannot_work_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        resolve("tiny", [override])
