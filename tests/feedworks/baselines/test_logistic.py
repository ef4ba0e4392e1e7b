import numpy as np
import pytest

from feedworks.baselines.logistic import logistic_scores

SIZES = (5, 3)


def test_it_finds_the_log_odds_of_single_fields():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(size, size=40_000) for size in SIZES], axis=1)
    bias = [rng.standard_normal(size) for size in SIZES]
    logit = bias[0][ids[:, 0]] + bias[1][ids[:, 1]]
    label = rng.random(40_000) < 1 / (1 + np.exp(-logit))
    asked = np.array([[a, b] for a in range(5) for b in range(3)])
    expected = bias[0][asked[:, 0]] + bias[1][asked[:, 1]]
    np.testing.assert_allclose(logistic_scores(ids, label, SIZES, asked), expected, atol=0.1)


def test_two_fields_together_are_beyond_it():
    ids = np.array([[a, b] for a in range(2) for b in range(2)] * 50)
    label = ids[:, 0] ^ ids[:, 1]
    scores = logistic_scores(ids, label, (2, 2), ids[:4])
    assert scores == pytest.approx(np.zeros(4), abs=1e-6)
