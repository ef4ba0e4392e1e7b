import math

import numpy as np

from feedworks.metrics.scalars import loggable


def test_loggable_gives_plain_finite_floats() -> None:
    metrics = {"a": np.float32(0.5), "b": math.nan, "c": math.inf, "d": 1, "a/ci_low": 0.4}
    result = loggable(metrics)
    assert result == {"a": 0.5, "d": 1.0}
    assert {type(value) for value in result.values()} == {float}
    assert "a/ci_low" in loggable(metrics, intervals=True)
