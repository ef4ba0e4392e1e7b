"""How numbers read."""

import pytest

from feedworks.metrics.ranking import Interval
from feedworks.reports.text import format_interval, format_number, metric_title


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12101, "12,101"),
        (-3, "-3"),
        (0.0, "0.0000"),
        (0.06481, "0.0648"),
        (0.99996, "1.0000"),
        (-0.25, "-0.2500"),
        (7.61, "7.610"),
        (42.0, "42.00"),
        (208.1, "208.1"),
        (12101.4, "12,101"),
        (0.0009, "0.0009"),
        (1.25e-5, "1.25e-05"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_format_interval():
    assert format_interval(Interval(0.5, 0.25, 0.75)) == "0.2500 to 0.7500"


@pytest.mark.parametrize(
    ("key", "title"), [("recall@10", "Recall@10"), ("ndcg@5", "NDCG@5"), ("mrr", "MRR"), ("x@y@z", "x@y@z")]
)
def test_metric_title(key, title):
    assert metric_title(key) == title
