"""Training sets on disk, and the table of teacher vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from feedworks.errors import DataError
from feedworks.ocarm.config import resolve
from feedworks.ocarm.rows import (
    Batch,
    Vectors,
    read_content,
    read_inputs,
    read_vectors,
    shuffled,
    write_vectors,
)
from feedworks.training.batches import num_rows, split

from . import toy

CFG = resolve("tiny", ["samples.content_days=3"])


def test_content_stands_beside_its_sample_whatever_its_order(tmp_path: Path) -> None:
    seen, hidden = toy.write(tmp_path)
    inputs = read_inputs(seen, CFG)
    content = read_content(hidden, seen, inputs)
    assert {split: rows.num_rows for split, rows in inputs.rows.items()} == {
        "train": 150,
        "valid": 75,
        "test": 75,
    }
    for name, rows in inputs.rows.items():
        category = inputs.items.category_I[(rows.observable.ad_item_B - 1).numpy()] + 1
        some = (content[name].length_BD[:, 0] > 0).numpy() & (rows.observable.ad_item_B > 0).numpy()
        assert some.any()
        assert (content[name].code_BDN2[some, 0, 0, 1].numpy() == category[some]).all()


def test_a_sample_without_content_is_named(tmp_path: Path) -> None:
    seen, hidden = toy.write(tmp_path)
    table = pq.read_table(hidden / "content.parquet")
    pq.write_table(table.filter(np.array(table["sample_id"]) != 7), hidden / "content.parquet")
    with pytest.raises(DataError, match="sample 7 has no row of content"):
        read_content(hidden, seen, read_inputs(seen, CFG))


def test_missing_files_and_splits_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"observables\.parquet"):
        read_inputs(tmp_path, CFG)
    seen, _ = toy.write(tmp_path)
    with pytest.raises(DataError, match=r"content\.parquet"):
        read_content(tmp_path, seen, read_inputs(seen, CFG))
    table = pq.read_table(seen / "observables.parquet")
    pq.write_table(table.filter(np.array(table["split"]) != "valid"), seen / "observables.parquet")
    with pytest.raises(DataError, match="split valid"):
        read_inputs(seen, CFG)


def test_the_table_of_vectors_round_trips_and_has_gaps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = Vectors(np.array([7, 3, 5]), torch.randn(3, 2, 4), torch.randn(3, 2))
    start = {"retention.weight": torch.randn(2, 2)}
    write_vectors(tmp_path / "vectors", found, start, (1, 7))
    again, weights = read_vectors(tmp_path / "vectors", (1, 7))
    assert torch.equal(again.vector_BHD, found.vector_BHD)
    assert torch.equal(weights["retention.weight"], start["retention.weight"])
    taken = again.of(np.array([5, 6, 7]))
    assert torch.equal(taken.vector_BHD[[0, 2]], found.vector_BHD[[2, 0]])
    assert torch.equal(taken.logit_BH[[0, 2]], found.logit_BH[[2, 0]])
    assert taken.vector_BHD[1].isnan().all()
    with pytest.raises(DataError, match="no vectors for lt30"):
        read_vectors(tmp_path / "vectors", (7, 30))


def test_batches_are_cut_as_the_loop_cuts_them() -> None:
    tensors = (torch.arange(10), torch.arange(20).reshape(10, 2))
    batches = shuffled(tensors, 4, seed=0)
    assert [num_rows(batch) for batch in batches(0)] == [4, 4, 2]
    assert torch.equal(torch.cat([batch[0] for batch in batches(3)]).sort().values, tensors[0])
    assert all(torch.equal(batch[1][:, 0], 2 * batch[0]) for batch in batches(1))
    assert torch.equal(batches(2)[1][0], batches(2)[1][0])
    part = split(batches(0)[0], rank=1, world=2, num_parts=1)[0]
    assert isinstance(part.batch, Batch)
    assert torch.equal(part.batch[0], batches(0)[0][0][2:])
