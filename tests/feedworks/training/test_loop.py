import math
import time
from dataclasses import replace

import pytest
import torch

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.training.loop import fit
from feedworks.training.optimizer import build_optimizer, learning_rate
from feedworks.training.seed import seed_step

from . import toy
from .toy import BEST_EPOCH, CONFIG, METRIC, NUM_BATCHES, Toy

SHORT = replace(CONFIG, epochs=3, checkpoint_every_s=1e9, eval_every=1, patience=0)
LONG = replace(CONFIG, checkpoint_every_s=1e9)


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def plain_loop(config):
    """The definition: what `fit` computes, without Fabric, state or progress."""
    module = Toy()
    optimizer = build_optimizer(module, config)
    parameters = [x for x in module.parameters() if x.requires_grad]
    step, means = 0, []
    for epoch in range(config.epochs):
        total, terms = 0.0, 0.0
        for batch in toy.batches(epoch):
            seed_step(torch.device("cpu"), config.seed, "step", step, 0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, config.epochs * NUM_BATCHES)
            found = toy.loss(module, batch)
            optimizer.zero_grad()
            found["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            total += found["loss"].item() * float(found["weight"])
            terms += float(found["weight"])
            step += 1
        means.append(total / terms)
    return module, means


def test_fit_is_the_plain_loop_bit_for_bit(tmp_path):
    module, result = toy.train(tmp_path / "s", SHORT, evaluate=None)
    expected, means = plain_loop(SHORT)
    assert_same_bits(weights(module), weights(expected))
    assert [row["train/loss"] for row in result.history] == pytest.approx(means, rel=1e-6)
    assert result.num_steps == 3 * NUM_BATCHES
    assert (result.best_epoch, result.best_metric) == (-1, None)
    assert not module.training


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_afterwards_what_they_were(tmp_path, before):
    torch.set_flush_denormal(before)
    try:
        toy.train(tmp_path / "s", SHORT, evaluate=None)
        assert (torch.tensor(1e-40).mul(1).item() == 0) is before
    finally:
        torch.set_flush_denormal(False)


def test_history_has_one_row_per_epoch_and_no_clock(tmp_path):
    _, first = toy.train(tmp_path / "a", SHORT)
    _, second = toy.train(tmp_path / "b", SHORT)
    assert first.history == second.history
    assert [row["epoch"] for row in first.history] == [0, 1, 2]
    assert set(first.history[0]) == {"epoch", "step", "lr", "train/loss", "train/largest", METRIC}
    assert first.seconds > 0


def test_it_learns_stops_early_and_keeps_the_best_weights(tmp_path):
    seen = {}

    def evaluate(module, epoch):
        assert not module.training
        assert not torch.is_grad_enabled()
        seen[epoch] = weights(module)
        return toy.evaluate(module, epoch)

    module, result = toy.train(tmp_path / "s", LONG, evaluate=evaluate)
    assert result.best_epoch == BEST_EPOCH
    assert len(result.history) == BEST_EPOCH + 1 + LONG.patience
    assert sorted(seen) == list(range(1, len(result.history), LONG.eval_every))
    assert_same_bits(weights(module), seen[BEST_EPOCH])
    losses = [row["train/loss"] for row in result.history]
    assert losses[-1] < 0.6 * losses[0]


def test_the_last_epoch_is_always_evaluated(tmp_path):
    _, result = toy.train(tmp_path / "s", replace(SHORT, eval_every=10))
    assert [METRIC in row for row in result.history] == [False, False, True]


def test_evaluation_does_not_move_the_training(tmp_path):
    _, often = toy.train(tmp_path / "a", SHORT)
    _, never = toy.train(tmp_path / "b", SHORT, evaluate=None)
    assert [row["train/loss"] for row in often.history] == [row["train/loss"] for row in never.history]


def test_a_finished_run_returns_at_once(tmp_path):
    module, result = toy.train(tmp_path / "s", SHORT)
    built = []

    def batches(epoch):
        built.append(epoch)
        return toy.batches(epoch)

    start = time.monotonic()
    again, same = toy.train(tmp_path / "s", replace(SHORT, checkpoint_every_s=5.0), batches=batches)
    assert time.monotonic() - start < 1
    assert same == result
    assert_same_bits(weights(again), weights(module))
    assert built == [0], "only the check of the data looks at a batch"
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["final", "run.json"]


@pytest.mark.parametrize("accumulate", [2, 3, 40])
def test_accumulated_parts_add_up_to_the_whole_batch(tmp_path, accumulate):
    def train(name, settings):
        module = Toy(p_dropout=0.0)
        arguments = {"batches": toy.batches, "num_batches": NUM_BATCHES, "loss": toy.loss}
        return module, fit(module, config=settings, state_dir=tmp_path / name, **arguments)

    whole, expected = train("whole", SHORT)
    parts, found = train("parts", replace(SHORT, accumulate=accumulate))
    for one, other in zip(expected.history, found.history, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
    for name in ("table.weight", "inner.0.weight"):
        torch.testing.assert_close(whole.state_dict()[name], parts.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_bfloat16_arithmetic_keeps_float32_weights(tmp_path):
    kinds = []

    def loss(module, batch):
        kinds.append(module.logits(batch.item_B).dtype)
        return toy.loss(module, batch)

    settings = replace(SHORT, precision="bf16-mixed", epochs=8)
    module, result = toy.train(tmp_path / "s", settings, loss=loss)
    assert set(kinds) == {torch.bfloat16}
    assert {x.dtype for x in module.parameters()} == {torch.float32}
    assert result.history[-1]["train/loss"] < 0.95 * result.history[0]["train/loss"]


def test_bfloat16_weights_learn_and_are_what_a_finished_run_gives_back(tmp_path):
    settings = replace(SHORT, precision="bf16-true", lr=0.05, epochs=8)
    module, result = toy.train(tmp_path / "s", settings)
    assert {x.dtype for x in module.parameters()} == {torch.bfloat16}
    assert module.num_calls.dtype == torch.int64
    assert module.out.weight is module.table.weight
    assert result.history[-1]["train/loss"] < 0.95 * result.history[0]["train/loss"]
    again, _ = toy.train(tmp_path / "s", settings)
    assert_same_bits(weights(again), weights(module))


def test_frozen_weights_stay_and_belong_to_the_run(tmp_path):
    before = weights(Toy())
    module, _ = toy.train(tmp_path / "s", SHORT)
    after = weights(module)
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert not [name for name in changed if name.startswith("frozen")]
    assert "inner.0.weight" in changed
    thawed = Toy()
    thawed.frozen.requires_grad_(True)
    arguments = {
        "batches": toy.batches,
        "num_batches": NUM_BATCHES,
        "loss": toy.loss,
        "evaluate": toy.evaluate,
    }
    with pytest.raises(ConfigError, match="with model="):
        fit(thawed, config=SHORT, state_dir=tmp_path / "s", **arguments)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_unknown_number_of_batches(tmp_path, schedule):
    settings = replace(SHORT, schedule=schedule)
    if schedule == "constant":
        _, result = toy.train(tmp_path / "s", settings, batches=toy.stream, num_batches=None)
        assert result.num_steps == 3 * NUM_BATCHES
    else:
        with pytest.raises(ConfigError, match="schedule=cosine needs num_batches"):
            toy.train(tmp_path / "s", settings, batches=toy.stream, num_batches=None)


def test_num_batches_ends_an_endless_epoch(tmp_path):
    def endless(epoch):
        while True:
            yield from toy.batches(epoch)

    _, result = toy.train(tmp_path / "s", SHORT, batches=endless, num_batches=4)
    assert result.num_steps == 12


def test_no_batches_and_too_large_ones_are_refused(tmp_path):
    with pytest.raises(DataError, match="epoch 0 has no training batches"):
        toy.train(tmp_path / "a", SHORT, batches=lambda epoch: [])
    with pytest.raises(ConfigError, match="first batch has 32 rows, but batch_size=16"):
        toy.train(tmp_path / "b", replace(SHORT, batch_size=16))


def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path):
    def loss(module, batch):
        found = toy.loss(module, batch)
        return found | {"loss": found["loss"] * (math.nan if module.num_calls > 10 else 1.0)}

    settings = replace(SHORT, checkpoint_every_s=0)
    with pytest.raises(ModelError, match=r"broke down in epoch 1 by step 1\d: loss=nan.*lower lr"):
        toy.train(tmp_path / "s", settings, loss=loss)
    assert (tmp_path / "s" / "step-0000000010").is_dir()
    assert not (tmp_path / "s" / "step-0000000011").exists()


def test_wrong_metrics_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"monitored metric 'valid/x' is not among valid/ndcg@10"):
        toy.train(tmp_path / "a", SHORT, monitor="valid/x")
    with pytest.raises(ModelError, match=r"evaluation of epoch 0: valid/ndcg@10=nan"):
        toy.train(tmp_path / "b", SHORT, evaluate=lambda module, epoch: {METRIC: math.nan})
    with pytest.raises(ConfigError, match="returned total and no 'loss'"):
        toy.train(tmp_path / "c", SHORT, loss=lambda module, batch: {"total": module.out.bias.sum()})


def test_devices_must_be_those_that_run(tmp_path):
    with pytest.raises(ConfigError, match=r"devices=2, but 1 process\(es\) run; start with torchrun"):
        toy.train(tmp_path / "s", replace(SHORT, devices="2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        toy.train(tmp_path / "s", replace(SHORT, accelerator="cuda"))


@pytest.mark.gpu
def test_one_gpu_learns_like_the_cpu(tmp_path):
    _, on_cpu = toy.train(tmp_path / "cpu", replace(SHORT, accelerator="cpu"))
    module, on_gpu = toy.train(tmp_path / "gpu", replace(SHORT, accelerator="cuda"))
    assert module.out.weight.device.type == "cuda"
    assert on_gpu.history[0]["train/loss"] == pytest.approx(on_cpu.history[0]["train/loss"], rel=0.05)
