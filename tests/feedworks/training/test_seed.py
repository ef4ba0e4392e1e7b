import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedworks.training.seed import mix, numpy_generator, seed_everything, seed_step, step_generator


def test_the_same_name_gives_the_same_numbers():
    first = torch.rand(5, generator=step_generator(7, "negatives", 3))
    again = torch.rand(5, generator=step_generator(7, "negatives", 3))
    assert torch.equal(first, again)
    assert np.array_equal(numpy_generator(7, "x").random(5), numpy_generator(7, "x").random(5))


@given(st.lists(st.one_of(st.integers(), st.text("a/:1", max_size=3)), max_size=3), st.integers(0, 9))
def test_names_do_not_run_into_each_other(parts, seed):
    assert 0 <= mix(seed, *parts) < 2**63
    assert mix(seed, *parts) != mix(seed + 1, *parts)
    assert mix(seed, *parts, "a") != mix(seed, *parts)


def test_a_number_is_not_its_text_and_the_joint_counts():
    assert mix(0, 1) != mix(0, "1")
    assert mix(0, "a", "b") != mix(0, "b", "a")
    assert mix(0, "a/b") != mix(0, "a", "b")


def test_seed_everything_repeats_all_global_streams():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_seed_step_names_the_global_stream():
    device = torch.device("cpu")
    seed_step(device, 1, "step", 5)
    first = torch.rand(3)
    torch.rand(100)
    seed_step(device, 1, "step", 5)
    assert torch.equal(torch.rand(3), first)
    seed_step(device, 1, "step", 6)
    assert not torch.equal(torch.rand(3), first)
