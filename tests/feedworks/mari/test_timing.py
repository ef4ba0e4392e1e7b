"""The benchmark of the pipeline: every variant at every size, and torch as it was before."""

from __future__ import annotations

import pytest
import torch

from feedworks.mari.config import BenchConfig
from feedworks.mari.samples import export_ranker
from feedworks.mari.schema import RankerSchema
from feedworks.mari.timing import time_model

from . import theirs

VARIANTS = {"vani", "uoi", "mari", "mari_fragmented"}


def timed(**settings: object) -> dict:
    schema = RankerSchema.model_validate(theirs.SIDES)
    program = export_ranker(theirs.build().eval(), schema)
    return time_model(program, schema, BenchConfig(repeats=2, **settings), seed=0)


def test_every_variant_is_timed_at_every_size() -> None:
    before = torch.get_num_threads()
    found = timed(rows=(1, 20), compiled=False, threads=before + 1)
    assert torch.get_num_threads() == before
    assert (found["threads"], found["repeats"]) == (before + 1, 2)
    assert {(row["variant"], row["rows"]) for row in found["rows"]} == {
        (name, rows) for name in VARIANTS for rows in (1, 20)
    }
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in found["rows"])
    assert found["metrics"]["speed/mari/ms@20"] > 0
    assert len(found["metrics"]) == 8


@pytest.mark.slow
def test_compiled_variants_stand_beside_the_others() -> None:
    found = timed(rows=(1, 20), compiled=True)
    compiled = {row["variant"] for row in found["rows"] if row["compiled"]}
    assert compiled == VARIANTS
    assert "speed/mari_compiled/ms@20" in found["metrics"]
