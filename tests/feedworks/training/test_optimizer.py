import math

import pytest
import torch
from torch import nn

from feedworks.training.optimizer import build_optimizer, learning_rate, parameter_groups
from feedworks.training.settings import TrainConfig

from .toy import Toy


def config(**changes):
    return TrainConfig(**({"epochs": 1, "batch_size": 1, "lr": 2.0} | changes))


def test_only_weight_matrices_decay():
    module = Toy()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decays, rest = parameter_groups(module, 0.1)
    assert decays["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert [names[id(x)] for x in decays["params"]] == ["inner.0.weight", "unused.weight"]
    # The tied output layer is the table; the frozen layer is in neither group.
    rest_names = {names[id(x)] for x in rest["params"]}
    assert rest_names == {
        "table.weight",
        "inner.0.bias",
        "inner.1.weight",
        "inner.1.bias",
        "out.bias",
        "unused.bias",
    }


def test_a_module_without_matrices_has_one_group():
    assert [group["weight_decay"] for group in parameter_groups(nn.LayerNorm(3), 0.1)] == [0.0]


def test_one_step_is_adamw():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    optimizer = build_optimizer(module, config(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99)))
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # The first step of Adam moves by lr against the sign of the gradient, which is 1 here.
    expected = before * (1 - 0.1 * 0.5) - 0.1
    torch.testing.assert_close(module.weight.detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.5),
        ("constant", 3, 2.0),
        ("constant", 99, 2.0),
        ("linear", 4, 2.0),
        ("linear", 8, 0.2 + 1.8 * 0.5),
        ("linear", 12, 0.2),
        ("cosine", 4, 2.0),
        ("cosine", 6, 0.2 + 1.8 * 0.5 * (1 + math.sqrt(0.5))),
        ("cosine", 12, 0.2),
        ("cosine", 50, 0.2),
    ],
)
def test_the_learning_rate_by_hand(schedule, step, expected):
    settings = config(schedule=schedule, warmup_steps=4, min_lr_ratio=0.1)
    assert learning_rate(settings, step, num_steps=12) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.5), (3, 2.0), (7, 2.0), (8, 2.0), (9, 0.2 + 1.8 * 0.75), (11, 0.2 + 1.8 * 0.25), (12, 0.2)],
)
def test_the_rate_holds_until_the_last_steps_fall(step, expected):
    settings = config(schedule="wsd", warmup_steps=4, decay_steps=4, min_lr_ratio=0.1)
    assert learning_rate(settings, step, num_steps=12) == pytest.approx(expected)


def test_a_fall_that_is_longer_than_the_run_begins_after_the_warm_up():
    settings = config(schedule="wsd", warmup_steps=2, decay_steps=100)
    assert [learning_rate(settings, step, num_steps=6) for step in range(6)] == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
