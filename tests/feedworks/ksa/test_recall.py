"""Associative recall: every asked value can be found by its key, far away, and by nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedworks.errors import ConfigError
from feedworks.ksa.losses import IGNORED
from feedworks.ksa.recall import RecallTask, out_of_reach, recall_accuracy, recall_batch

TASK = RecallTask(length=120, gap=60, num_pairs=6, num_queries=3, num_keys=10, num_values=7, num_noise=5)
AGAIN = RecallTask(length=96, gap=20, num_pairs=3, num_queries=7, repeats=0.4, num_keys=8, num_values=6)


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        RecallTask(length=2 * 9 + 20, gap=20, num_pairs=5, num_queries=4, num_keys=5),
        AGAIN,
        RecallTask(length=24, gap=0, num_pairs=3, num_queries=3, repeats=1.0, num_keys=8),
    ],
    ids=["roomy", "as short as can be", "pairs that return", "pairs alone"],
)
def test_a_label_is_what_the_key_before_it_had_before_and_every_such_value_is_one(task):
    batch = recall_batch(task, 50, 3)
    question = task.length - 2 * task.num_queries
    for row, label in zip(batch.input_ids_BT.tolist(), batch.label_BT.tolist(), strict=True):
        value_of: dict[int, int] = {}
        wanted = [IGNORED] * task.length
        for place in range(0, task.length, 2):
            key, value = row[place : place + 2]
            if key >= task.num_keys + task.num_values:
                assert value >= task.num_keys + task.num_values, "noise holds no value"
                continue
            assert key < task.num_keys <= value
            assert not question - task.gap <= place < question, "no pair stands in the gap"
            if key in value_of:
                wanted[place + 1] = value_of[key]
            assert value_of.setdefault(key, value) == value, "a key has one value in a row"
        assert label == wanted
        assert len(value_of) == task.num_pairs
        assert all(token != IGNORED for token in label[question + 1 :: 2]), "questions can be answered"
    assert batch.input_ids_BT.max() < task.vocab_size


def test_pairs_return_as_often_as_asked_and_only_then():
    def early_pairs(task):
        early = recall_batch(task, 500, 1).input_ids_BT[
            :, : task.length - task.gap - 2 * task.num_queries : 2
        ]
        return (early < task.num_keys).sum(dim=1).double()

    assert (early_pairs(TASK) == TASK.num_pairs).all()
    num_early = (AGAIN.length - AGAIN.gap) // 2 - AGAIN.num_queries
    expected = AGAIN.num_pairs + AGAIN.repeats * (num_early - AGAIN.num_pairs)
    assert float(early_pairs(AGAIN).mean()) == pytest.approx(expected, rel=0.05)


def test_all_pairs_are_asked_for_before_one_is_again():
    asked = recall_batch(AGAIN, 200, 0).input_ids_BT[:, -2 * AGAIN.num_queries :: 2]
    for keys in asked.tolist():
        assert len(set(keys[:3])) == len(set(keys[3:6])) == 3


def test_named_keys_are_labels_right_after_their_values_and_change_nothing_else():
    plain, named = recall_batch(AGAIN, 50, 2), recall_batch(replace(AGAIN, name_keys=True), 50, 2)
    assert torch.equal(plain.input_ids_BT, named.input_ids_BT)
    ids, label = named.input_ids_BT, named.label_BT
    value_BT = (ids >= AGAIN.num_keys) & (ids < AGAIN.num_keys + AGAIN.num_values)
    row, place = torch.nonzero(value_BT[:, :-1], as_tuple=True)
    assert torch.equal(label[row, place + 1], ids[row, place - 1])
    added = (label != plain.label_BT).sum()
    assert added == len(row), "and the other labels are those without"


def test_names_of_streams_decide_the_rows():
    first, same, other = (recall_batch(TASK, 4, 0, "train", step).input_ids_BT for step in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, recall_batch(TASK, 4, 1, "train", 1).input_ids_BT)


def test_values_are_uniform_and_told_by_nothing_but_their_pair():
    batch = recall_batch(TASK, 4000, 5)
    value = batch.label_BT[batch.label_BT != IGNORED].reshape(4000, 3)
    count = torch.bincount((value - TASK.num_keys).reshape(-1), minlength=TASK.num_values)
    assert count.min() > 0.9 * count.float().mean()
    # Neither the key nor the value before it says anything: the best guess from them is right by chance.
    key = batch.input_ids_BT[:, -2]
    for before, size in ((key, TASK.num_keys), (value[:, 1] - TASK.num_keys, TASK.num_values)):
        joint = torch.zeros(size, TASK.num_values)
        joint.index_put_((before, value[:, 2] - TASK.num_keys), torch.tensor(1.0), accumulate=True)
        assert joint.max(dim=1).values.sum() / 4000 < TASK.chance + 0.05


def test_accuracy_counts_the_place_before_the_label():
    batch = recall_batch(TASK, 8, 0)
    logits = torch.zeros(8, TASK.length, TASK.vocab_size)
    logits[:, :-1].scatter_(2, batch.input_ids_BT[:, 1:, None], 1.0)
    assert recall_accuracy(logits, batch.label_BT) == 1.0
    assert recall_accuracy(logits.roll(1, dims=1), batch.label_BT) < 0.5


def test_a_gap_out_of_reach_is_out_of_reach():
    """Brute force: what a stack of windows can carry from one token to a later one."""
    layers, window, chunk = 3, 2, 4
    length = 80
    place = np.arange(length)
    by_chunks = (place[:, None] >= place) & (place[:, None] // chunk - place // chunk <= window)
    by_tokens = (place[:, None] >= place) & (place[:, None] - place < (window + 1) * chunk)
    for reads in (by_chunks, by_tokens):
        reached = np.linalg.matrix_power(reads.astype(int), layers) > 0
        distance = (place[:, None] - place)[reached].max()
        assert distance <= out_of_reach(num_layers=layers, window=window, chunk=chunk)
        assert distance > out_of_reach(num_layers=layers - 1, window=window, chunk=chunk)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"length": 20}, "need length="),
        ({"num_queries": 90}, "need length="),
        ({"num_keys": 7}, "num_pairs <= num_keys"),
        ({"num_queries": 0}, "expected a pair, a question"),
        ({"num_values": 1}, "two values"),
        ({"gap": -2}, "no gap below 0"),
        ({"gap": 31}, "even length and gap"),
        ({"length": 201}, "even length and gap"),
        ({"repeats": 1.5}, "repeats from 0 to 1"),
    ],
)
def test_impossible_tasks_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        RecallTask(**{"length": 200, "gap": 30, **wrong})
