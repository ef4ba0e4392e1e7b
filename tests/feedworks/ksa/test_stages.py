from dataclasses import replace

import pytest
import torch

from feedworks.errors import ConfigError
from feedworks.ksa import stages
from feedworks.ksa.checkpoint import as_qwen3, from_qwen3, save
from feedworks.ksa.data import Later, epochs
from feedworks.ksa.heldout import LOSS

from .training import (
    CHUNK,
    SEQ_LEN,
    STAGES,
    TRAINING,
    assert_same_bits,
    model,
    run,
    shortened,
    stage,
    text,
    weights,
)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"summaries": 2},
        {"summaries": 0},
        {"summaries": 0, "raw_window": "token"},
        {"windows": [None, None]},
    ],
    ids=["ksa", "m2", "chunk", "window", "full"],
)
def test_every_kind_of_attention_learns(tmp_path, pack, changes):
    trained, result = run("pretrain", stage(steps=12, pack=pack), tmp_path, model(**changes))
    assert result.history[-1]["train/loss"] < 0.7 * result.history[0]["train/loss"]
    assert result.history[-1][LOSS] == -result.best_metric
    assert not trained.training


def test_a_full_start_is_training_with_full_attention(tmp_path):
    started, plain = model(), model(windows=[None, None], summaries=0)
    before = weights(started)
    plain.load_state_dict({name: x for name, x in before.items() if name in plain.state_dict()})
    cfg = stage(full_share=0.5)
    first, rest = cfg.parts()
    assert first.num_steps == rest.num_steps == 6
    _, result = run("pretrain", cfg, tmp_path / "started", started, evaluate=False)
    assert result.num_steps == cfg.num_steps == 12
    assert [(row["epoch"], row["step"]) for row in result.history] == [(0, 6), (1, 12)]

    # The same by hand: full attention, then a conversion that copies, then the rows that are left.
    rows = stages.text_source(text(), first, CHUNK)
    stages.pretrain(plain, rows, first, tmp_path / "plain")
    save(as_qwen3(plain), tmp_path / "base")
    added = {"windows": started.config.windows, "chunk": CHUNK}
    converted = from_qwen3(tmp_path / "base", **added).train()
    stages.pretrain(converted, Later(rows, 6), rest, tmp_path / "converted")
    assert_same_bits(weights(started), weights(converted))


@pytest.mark.parametrize("share", [0.01, 0.99, 1.0, -0.1])
def test_a_full_start_leaves_steps_on_both_sides(share):
    with pytest.raises(ConfigError, match="full_share"):
        stage(full_share=share)


def test_layers_that_are_computed_again_give_the_same_bits(tmp_path):
    kept, _ = run("pretrain", stage(), tmp_path / "kept", model())
    network, calls = model(), []
    network.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    again, _ = run("pretrain", stage(checkpointing=True), tmp_path / "again", network)
    assert calls.count(True) == 2 * 12, "forward and again backward, in each step"
    assert_same_bits(weights(again), weights(kept))
    assert not again.is_activation_checkpointing


def test_distillation_trains_what_a_conversion_adds_and_nothing_else(tmp_path):
    network = model(windows=[2, 2])
    before, added = weights(network), {name for name, _ in network.summary_parameters()}
    _, result = run("distil", stage("distil", steps=15, lm_weight=0.0), tmp_path, network)
    changed = {name for name, x in weights(network).items() if not torch.equal(x, before[name])}
    # Nobody reads what the last layer's summaries have read.
    assert changed == added - {"model.layers.1.self_attn.q_summary.weight"}
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name in ("kl", "mse"):
        assert result.history[-1][f"train/{name}"] < result.history[0][f"train/{name}"]


def test_distillation_against_itself_starts_at_nothing_and_stays_there(tmp_path):
    network = model(windows=[None, None])
    cfg = stage("distil", steps=1)
    batch = epochs(stages.text_source(text(), cfg, CHUNK), 4, 1)(0)[0]
    terms = stages._distilled(network, batch, cfg)
    assert terms["kl"].abs() < 1e-6
    assert terms["mse"] < 1e-12
    terms["loss"].backward()
    for name, parameter in network.summary_parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-6, name


def test_a_model_without_summaries_has_nothing_to_distil(tmp_path):
    with pytest.raises(ConfigError, match="nothing to train"):
        run("distil", stage("distil"), tmp_path, model(summaries=0))


def test_shared_projections_cannot_be_annealed(tmp_path):
    with pytest.raises(ConfigError, match="no projections of their own; distil it first"):
        run("anneal", stage("anneal"), tmp_path, model(summary_projections=False))


def test_lambda_by_hand():
    cfg = stage("anneal", steps=50, start=0.1, end=0.6)
    assert cfg.num_steps == 100
    found = [stages.summary_weight(cfg, step) for step in (0, 10, 35, 59, 60, 99)]
    assert found == pytest.approx([1, 1, 0.5, 0.02, 0, 0])


def test_annealing_ends_in_the_shared_projections_bit_for_bit(tmp_path):
    network = model()
    seen = []

    def evaluate(module, epoch):
        seen.append(module.config.summary_weight)
        return {"valid/log_likelihood": 0.0}

    cfg = stage("anneal")
    trained, result = stages.anneal(network, stages.text_source(text(), cfg, CHUNK), cfg, tmp_path, evaluate)
    assert seen == [0.0, 0.0], "it is measured as it will be handed over"
    assert 0 < result.history[1]["train/lambda"] < result.history[0]["train/lambda"] < 1
    assert {name for name, _ in trained.summary_parameters()} == {"model.summary_embedding.weight"}
    plain = model(summary_projections=False)
    plain.load_state_dict(trained.state_dict())
    ids = torch.from_numpy(text(seed=4).tokens[: 2 * SEQ_LEN].astype("int64")).view(2, -1)
    with torch.no_grad():
        assert torch.equal(plain.eval()(ids).logits, trained(ids).logits)


def test_a_longer_text_raises_the_base(tmp_path):
    network = model(rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
    run("extend", stage("extend", rope_power=0.5), tmp_path, network)
    assert network.config.rope_parameters["rope_theta"] == pytest.approx(1000 * (96 / SEQ_LEN) ** 0.5)
    assert network.config.max_position_embeddings == 128
    expected = model(rope_parameters=network.config.rope_parameters).model.rotary_emb.inv_freq
    assert torch.equal(network.model.rotary_emb.inv_freq, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["length-64", "length-96"]


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_stage_gives_its_result_again(tmp_path, name):
    first, result = run(name, stage(name), tmp_path, model())
    again, same = run(name, stage(name), tmp_path, model())
    assert same == result
    assert_same_bits(weights(again), weights(first))


@pytest.mark.parametrize(
    "changes", [{"windows": [2, 2]}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}]
)
def test_another_attention_of_the_same_shapes_is_another_run(tmp_path, changes):
    run("pretrain", stage(steps=2), tmp_path, model())
    with pytest.raises(ConfigError, match="holds another run"):
        run("pretrain", stage(steps=2), tmp_path, model(**changes))


def test_a_finished_run_is_the_same_with_recomputed_layers(tmp_path):
    first, _ = run("pretrain", stage(steps=2), tmp_path, model())
    again, _ = run("pretrain", stage(steps=2, checkpointing=True), tmp_path, model())
    assert_same_bits(weights(first), weights(again))


def test_bfloat16_arithmetic_learns_alike(tmp_path):
    _, exact = run("pretrain", stage(), tmp_path / "exact", model())
    _, rounded = run("pretrain", shortened(stage(), precision="bf16-mixed"), tmp_path / "rounded", model())
    for one, other in zip(exact.history, rounded.history, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.02)


def test_bfloat16_weights_learn(tmp_path):
    trained, result = run("pretrain", shortened(stage(steps=12), precision="bf16-true"), tmp_path, model())
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.bfloat16}
    assert trained.model.rotary_emb.inv_freq.dtype == torch.float32
    assert result.history[-1]["train/loss"] < 0.8 * result.history[0]["train/loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", STAGES)
def test_a_gpu_learns_like_the_cpu(tmp_path, name, precision):
    def trained_on(accelerator):
        cfg = stage(name, pack=True, checkpointing=True)
        training = replace(cfg.training, accelerator=accelerator, precision=precision)
        return run(name, replace(cfg, training=training), tmp_path / accelerator, model())

    on_cpu, on_gpu = trained_on("cpu"), trained_on("cuda")
    assert on_gpu.model.device.type == "cuda"
    for one, other in zip(on_cpu.result.history, on_gpu.result.history, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.03)


def test_the_parts_of_a_full_start_have_their_own_schedules():
    training = replace(TRAINING, epochs=3, schedule="wsd", decay_steps=4)
    first, rest = stage(steps=10, training=training, full_share=0.4).parts()
    assert (first.training.epochs, first.num_steps) == (1, 12)
    assert (first.training.schedule, first.training.decay_steps) == ("constant", 0)
    assert rest.num_steps == 18
    assert (rest.training.schedule, rest.training.decay_steps) == ("wsd", 4)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.77])
def test_no_step_of_a_full_start_is_lost(share):
    for steps in (7, 100):
        cfg = stage(steps=steps, full_share=share)
        first, rest = cfg.parts()
        assert first.num_steps + rest.num_steps == cfg.num_steps


def test_the_loss_of_distillation_is_the_weighed_sum_of_its_terms():
    weight_of = {"lm": 0.5, "kl": 3.0, "mse": 7.0, "cos": 11.0}
    cfg = stage("distil", steps=1, **{f"{name}_weight": weight for name, weight in weight_of.items()})
    batch = epochs(stages.text_source(text(), cfg, CHUNK), 4, 1)(0)[0]
    terms = stages._distilled(model(), batch, cfg)
    assert all(terms[name] > 0 for name in weight_of)
    expected = sum(weight * terms[name].item() for name, weight in weight_of.items())
    assert terms["loss"].item() == pytest.approx(expected)
