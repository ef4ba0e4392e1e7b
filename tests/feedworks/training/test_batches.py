from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feedworks.errors import DataError
from feedworks.training.batches import num_rows, split, to_device


class Batch(NamedTuple):
    name: str
    x_BD: Tensor
    y_B: Tensor
    shared: Tensor
    scale: Tensor
    absent: Tensor | None


def batch(rows: int) -> Batch:
    x_BD = torch.arange(rows * 2).reshape(rows, 2)
    return Batch("b", x_BD, torch.arange(rows), torch.zeros(rows + 1), torch.tensor(2.0), None)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_every_row_comes_once(rows, world, num_parts):
    whole = batch(rows)
    parts = [
        part for rank in range(world) for part in split(whole, rank=rank, world=world, num_parts=num_parts)
    ]
    real = [part for part in parts if part.weight]
    assert torch.equal(torch.cat([part.batch.y_B for part in real]), whole.y_B)
    assert torch.equal(torch.cat([part.batch.x_BD for part in real]), whole.x_BD)
    assert all(len(part.batch.y_B) == max(part.weight, 1) for part in parts)
    assert all(part.begin == part.batch.y_B[0] for part in parts)
    assert max(part.weight for part in real) - min(part.weight for part in real) <= 1 + rows // world
    assert all(part.batch.shared is whole.shared and part.batch.scale is whole.scale for part in parts)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_all_processes_have_as_many_parts(rows, world, num_parts):
    lengths = {len(split(batch(rows), rank=rank, world=world, num_parts=num_parts)) for rank in range(world)}
    assert len(lengths) == 1, "with FSDP they exchange weights in each"
    assert 1 <= lengths.pop() <= num_parts


def test_a_batch_without_rows_is_refused():
    with pytest.raises(DataError, match="Batch has no tensor with rows"):
        num_rows(batch(0)._replace(shared=torch.tensor(1.0)))


def test_moving_keeps_type_and_what_is_no_tensor():
    moved = to_device(batch(3), torch.device("meta"))
    assert isinstance(moved, Batch)
    assert moved.x_BD.device.type == "meta"
    assert moved.name == "b"
    assert moved.absent is None
