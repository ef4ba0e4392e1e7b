"""Associative recall: every asked value can be found by its key, far away, and by nothing else."""

import numpy as np
import pytest
import torch

from feedworks.errors import ConfigError
from feedworks.ksa.losses import IGNORED
from feedworks.ksa.recall import RecallTask, out_of_reach, recall_accuracy, recall_batch

TASK = RecallTask(length=120, gap=60, num_pairs=6, num_queries=3, num_keys=10, num_values=7, num_noise=5)


def looked_up(task, row):
    """Distance back to each asked key and the value beside it, by reading the row."""
    question = task.length - 2 * task.num_queries
    for place in range(question, task.length, 2):
        before = [i for i in range(place) if row[i] == row[place] and i < question]
        assert len(before) == 1, "a key stands there once"
        yield place - before[0], row[before[0] + 1], row[place + 1]


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        RecallTask(length=2 * 9 + 20 + 1, gap=20, num_pairs=5, num_queries=4, num_keys=5),
        RecallTask(length=64, gap=30, least_gap=0, num_pairs=4, num_queries=1),
    ],
    ids=["roomy", "as short as can be", "gaps of many lengths"],
)
def test_a_key_looked_up_gives_the_label_and_no_other_place_does(task):
    batch = recall_batch(task, 50, 3)
    for row, label in zip(batch.input_ids_BT.tolist(), batch.label_BT.tolist(), strict=True):
        found = list(looked_up(task, row))
        assert [found_value for _, found_value, _ in found] == [asked for _, _, asked in found]
        question = task.length - 2 * task.num_queries
        asked = [token for token in label if token != IGNORED]
        assert asked == row[question + 1 :: 2]
        assert all(task.num_keys <= token < task.num_keys + task.num_values for token in asked)
        keys_and_values = [i for i in range(question) if row[i] < task.num_keys + task.num_values]
        assert len(keys_and_values) == 2 * task.num_pairs
        gap = question - 1 - keys_and_values[-1]
        assert gap >= (task.gap if task.least_gap is None else task.least_gap)
        assert min(distance for distance, _, _ in found) > gap
    assert batch.input_ids_BT.max() < task.vocab_size


def test_gaps_of_many_lengths_reach_from_the_least_to_the_whole():
    task = RecallTask(length=64, gap=30, least_gap=0, num_pairs=4, num_queries=1)
    rows = recall_batch(task, 400, 0).input_ids_BT.numpy()
    last = [np.flatnonzero(row[:62] < 128)[-1] for row in rows]
    assert min(last) < 32
    assert max(last) == 61


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
        ({"num_queries": 9}, "expected 1 <= num_queries"),
        ({"num_keys": 7}, "num_pairs <= num_keys"),
        ({"num_values": 1}, "two values"),
        ({"gap": -1}, "no gap below 0"),
        ({"least_gap": 40}, "is not between 0 and gap=30"),
    ],
)
def test_impossible_tasks_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        RecallTask(**{"length": 200, "gap": 30, **wrong})
