"""Splits and batches: what a split may know, and what stands in a batch of either stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedworks.errors import DataError
from feedworks.recochain.data import (
    Examples,
    Sequences,
    generator_batches,
    history_tensor,
    rank_batches,
    rank_positions,
    read_examples,
    read_sequences,
    write_examples,
    write_sequences,
)


def sequences(*rows: list[int]) -> Sequences:
    start = np.append(0, np.cumsum([len(row) for row in rows]))
    return Sequences(np.arange(len(rows)) + 100, start, np.concatenate([np.array(row) for row in rows]))


def generated(seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    return sequences(*[rng.integers(0, 20, rng.integers(3, 15)).tolist() for _ in range(40)])


def test_splits_by_hand():
    made = sequences([1, 2, 3, 4, 5], [6, 7, 8])
    assert len(made) == 2
    assert [h.tolist() for h in made.histories("train")] == [[1, 2, 3], [6]]
    assert [h.tolist() for h in made.histories("valid")] == [[1, 2, 3], [6]]
    assert [h.tolist() for h in made.histories("test")] == [[1, 2, 3, 4], [6, 7]]
    assert made.targets("valid").tolist() == [4, 7]
    assert made.targets("test").tolist() == [5, 8]
    assert made.train_counts(10).tolist() == [0, 1, 1, 1, 0, 0, 1, 0, 0, 0]


def test_property_7_training_reads_nothing_of_the_held_out_items():
    made = generated()
    altered = Sequences(made.user_id, made.start, made.item.copy())
    for back in (1, 2):
        altered.item[made.start[1:] - back] = 19 - made.item[made.start[1:] - back]
    assert made.train_counts(20).tolist() == altered.train_counts(20).tolist()
    for one, other in zip(*(_stage_one(s)(0) for s in (made, altered)), strict=True):
        assert torch.equal(one.item_BT, other.item_BT)
    for one, other in zip(*(_stage_two(s)(0) for s in (made, altered)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _stage_one(made: Sequences, **settings: int):
    return generator_batches(made, **({"max_history": 4, "batch_size": 8, "seed": 0} | settings))


def _beams(rows: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    beam = np.stack([rng.permutation(20)[:6] for _ in range(rows)])
    beam[rng.random(beam.shape) < 0.2] = -1
    return beam


def _stage_two(made: Sequences, *, positions: int = 2, negatives: int = 3, epoch_seed: int = 0):
    user, position = rank_positions(made, positions)
    beam = _beams(len(user))
    rng = np.random.default_rng(2)
    prior = -rng.random((*beam.shape, 2)).astype(np.float32) - [0, 5]
    own = -rng.random((len(user), 2)).astype(np.float32) - [1, 6]
    return rank_batches(
        made,
        Examples(user, position, beam, prior.astype(np.float32), own.astype(np.float32)),
        max_history=4,
        search_history=6,
        negatives=negatives,
        batch_size=8,
        seed=epoch_seed,
    )


@pytest.mark.parametrize("skip_last", [0, 2])
def test_stage_one_sees_every_training_item_once(skip_last):
    made = generated()
    kept = [h[:-skip_last] if skip_last and len(h) > skip_last else h for h in made.histories("train")]
    batches = _stage_one(made, skip_last=skip_last)(3)
    items = np.concatenate([b.item_BT[b.item_BT >= 0].numpy() for b in batches])
    assert sorted(items.tolist()) == sorted(np.concatenate(kept).tolist())
    windows = {tuple(row[row >= 0].tolist()) for batch in batches for row in batch.item_BT}
    assert all(tuple(h[-4:].tolist()) in windows for h in kept)
    assert all(batch.item_BT.shape[1] <= 4 and len(batch.item_BT) <= 8 for batch in batches)


def test_an_epoch_gives_the_same_batches_each_time_and_another_epoch_others():
    for make in (_stage_one, _stage_two):
        batches = make(generated())
        first, again, other = batches(0), batches(0), batches(1)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_stage_two_rows_hold_the_target_its_past_and_negatives_of_its_beam():
    made = generated()
    user, position = rank_positions(made, 2)
    beams = {}
    for u, p in zip(user.tolist(), position.tolist(), strict=True):
        target = int(made.row(u)[p])
        window = tuple(made.row(u)[:p][-4:].tolist())
        beams.setdefault((*window, target), []).append((u, p))
    count = 0
    for batch in _stage_two(made)(0):
        for item, length, candidate, prior, past, found in zip(*batch, strict=True):
            real = item[item >= 0].tolist()
            target = real[-1]
            assert len(real) == length + 1
            assert candidate[0] == target
            u, p = next(
                pair for pair in beams[tuple(real)]
                if made.row(pair[0])[: pair[1]][-6:].tolist() == past[past >= 0].tolist()
            )  # fmt: skip
            assert p == len(made.row(u)) - 3 or p == len(made.row(u)) - 4
            negatives = [c for c in candidate[1:].tolist() if c >= 0]
            assert target not in negatives
            assert len(set(negatives)) == len(negatives) <= 3
            assert (prior[1:][candidate[1:] < 0] == 0).all()
            row = next(i for i, pair in enumerate(zip(user, position, strict=True)) if pair == (u, p))
            assert bool(found) is bool((_beams(len(user))[row] == target).any())
            assert prior[0, 0] < -1 < prior[1:, 0].min()
            assert -7 < prior[0, 1] < -6 < prior[1:, 1].min()
            count += 1
    assert count == len(user)


def test_negatives_are_drawn_anew_and_all_that_there_are_when_more_are_asked_for():
    made = generated()
    few = _stage_two(made)
    drawn = [sorted(row for batch in few(epoch) for row in batch.candidate_BK.tolist()) for epoch in (0, 1)]
    assert drawn[0] != drawn[1]
    every = _stage_two(made, negatives=50)(0)
    assert all(batch.candidate_BK.shape[1] == 1 + 6 for batch in every)
    columns = [(batch.candidate_BK >= 0).sum(dim=1) for batch in every]
    assert torch.cat(columns).max() > 1 + 3


def test_rank_positions_have_a_history():
    made = sequences([1, 2, 3, 4, 5], [6, 7, 8], [1, 2, 3, 4])
    users, positions = rank_positions(made, 3)
    assert sorted(zip(users.tolist(), positions.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 1)]


def test_history_tensor_keeps_the_latest():
    assert history_tensor([[1, 2, 3], [4]], 2).tolist() == [[2, 3], [4, -1]]


def test_files_read_back_what_was_written(tmp_path):
    made = generated()
    write_sequences(made, tmp_path / "s.parquet")
    again = read_sequences(tmp_path / "s.parquet")
    for name in ("user_id", "start", "item"):
        assert np.array_equal(getattr(made, name), getattr(again, name))
    examples = Examples(
        np.array([0, 1]),
        np.array([3, 4]),
        np.array([[1, -1], [2, 3]]),
        np.array([[[-0.5, 3], [-np.inf, 0]], [[-1, 4], [-2, 5]]], np.float32),
        np.array([[-1.5, 6], [-2, 7]], np.float32),
    )
    write_examples(examples, tmp_path / "e.parquet")
    for one, other in zip(examples, read_examples(tmp_path / "e.parquet"), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("read", [read_sequences, read_examples])
def test_a_missing_or_damaged_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"x\.parquet cannot be read .*run the step"):
        read(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        read(tmp_path / "x.parquet")
