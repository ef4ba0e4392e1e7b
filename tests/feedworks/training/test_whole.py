"""Parts of a batch against the whole of it: noise, means over labels, batch normalisation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedworks.training.batches import num_rows, split
from feedworks.training.whole import draw_rows, of_whole, only_rows, part_of

ROWS = 11
PLAIN = nn.Identity()


class Batch(NamedTuple):
    x_BD: Tensor
    label_B: Tensor


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.rand(ROWS, 4, generator=generator)
    return Batch(x_BD, x_BD[:, 0].where(torch.arange(ROWS) != 5, torch.nan))


def known(batch: Batch) -> Tensor:
    return ~batch.label_B.isnan()


def parts(world: int, num_parts: int):
    for rank in range(world):
        yield from split(batch(), rank=rank, world=world, num_parts=num_parts)


def draws(batch: Batch, *, cut: bool) -> list[Tensor]:
    """Noise of each kind that the papers draw, in an order in which a wrong number of draws shows."""
    found = [F.dropout(batch.x_BD, 0.5), draw_rows(torch.rand, (len(batch.x_BD), 2))]
    kept_B = known(batch)
    with only_rows(known, batch):
        found.append(F.dropout(batch.x_BD[kept_B], 0.3))
    query = batch.x_BD[:, None, :, None]
    found.append(F.scaled_dot_product_attention(query, query, query, dropout_p=0.4))
    layer = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True).train()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(0.1)
    three_BTD = batch.x_BD[:, None].expand(-1, 3, -1)
    found.append(F.dropout(layer(three_BTD, three_BTD, three_BTD, need_weights=False)[0], 0.5))
    return found if cut else [*found, torch.rand(2)]


@pytest.mark.parametrize(("world", "num_parts"), [(2, 1), (2, 2), (1, 4)])
def test_parts_have_the_noise_of_the_whole(world, num_parts):
    torch.manual_seed(3)
    expected = draws(batch(), cut=False)
    found, shared = [], []
    for part in parts(world, num_parts):
        torch.manual_seed(3)
        with part_of(batch(), part, PLAIN, cut_noise=True):
            found.append(draws(part.batch, cut=True))
            shared.append(torch.rand(2))
    for place, whole in enumerate(expected[:-1]):
        torch.testing.assert_close(torch.cat([each[place] for each in found]), whole)
    assert all(torch.equal(each, expected[-1]) for each in shared), "what is drawn for all is the same"


def test_without_cutting_each_part_draws_its_own_noise():
    first, second = list(parts(2, 1))[:2]
    torch.manual_seed(3)
    whole = F.dropout(batch().x_BD, 0.5)
    torch.manual_seed(3)
    with part_of(batch(), second, PLAIN, cut_noise=False):
        assert not torch.equal(F.dropout(second.batch.x_BD, 0.5), whole[len(first.batch.x_BD) :])


@pytest.mark.parametrize("world", [2, 3, 11])
def test_means_over_labels_add_up(world):
    def loss(batch: Batch, *, mended: bool = True) -> Tensor:
        kept = known(batch)
        mean = batch.x_BD[kept].mean() if kept.any() else batch.x_BD.sum() * 0
        return of_whole(mean, lambda batch: known(batch).sum(), batch) if mended else mean

    def total(*, mended: bool) -> float:
        found = 0.0
        for part in parts(world, 1):
            with part_of(batch(), part, PLAIN, cut_noise=True):
                found += float(loss(part.batch, mended=mended)) * part.weight / ROWS
        return found

    assert total(mended=True) == pytest.approx(float(loss(batch())), abs=1e-7)
    assert total(mended=False) != pytest.approx(float(loss(batch())), abs=1e-4), "the mend is what it takes"


def test_outside_of_a_part_nothing_changes():
    torch.manual_seed(0)
    expected = torch.rand(3, 2)
    torch.manual_seed(0)
    assert torch.equal(draw_rows(torch.rand, (3, 2)), expected)
    mean = expected.mean()
    assert of_whole(mean, lambda batch: pytest.fail("nothing is counted"), batch()) is mean
    with only_rows(known, batch()):
        pass


def normalised(x_BD: Tensor, layer: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    x_BD = x_BD.clone().requires_grad_()
    y_BD = layer(x_BD)
    (y_BD * torch.arange(4.0, dtype=torch.float64).cos() * x_BD.square()).sum().backward()
    assert x_BD.grad is not None
    return y_BD.detach(), x_BD.grad


def compare_normalisation() -> None:
    """In each of two processes: outputs, gradients and running statistics are those of all rows together."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    whole = batch()._replace(x_BD=batch().x_BD.double())
    expected, own = (nn.BatchNorm1d(4, dtype=torch.float64) for _ in range(2))
    y_BD, gradient_BD = normalised(whole.x_BD, expected)
    (part,) = split(whole, rank=rank, world=2, num_parts=1)
    with part_of(whole, part, own, cut_noise=True):
        found = normalised(part.batch.x_BD, own)
    rows = slice(part.begin, part.begin + part.weight)
    torch.testing.assert_close(found, (y_BD[rows], gradient_BD[rows]))
    torch.testing.assert_close(own.state_dict(), expected.state_dict())
    local = F.batch_norm(part.batch.x_BD, None, None, training=True)
    assert not torch.allclose(local, y_BD[rows], atol=1e-3), "the rows of one process would not do"
    (one,) = split(
        whole._replace(x_BD=whole.x_BD[:1], label_B=whole.label_B[:1]), rank=rank, world=2, num_parts=1
    )
    assert num_rows(one.batch) == 1
    with part_of(one.batch, one, own, cut_noise=True), pytest.raises(ValueError, match="two rows or more"):
        own(one.batch.x_BD)
    torch.distributed.destroy_process_group()


def test_batch_normalisation_takes_the_rows_of_all_processes():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, str(Path(__file__))], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    compare_normalisation()
