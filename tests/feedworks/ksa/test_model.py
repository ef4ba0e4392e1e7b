"""The decoder keeps the paper's rule of who reads whom, and trains as it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from feedworks.errors import ConfigError
from feedworks.ksa import attention
from feedworks.ksa.checkpoint import as_qwen3
from feedworks.ksa.model import Qwen3KsaForCausalLM

from . import decoders

T, K = 45, 4  # eleven chunks and one token
IDS = decoders.tokens(2, T)
EVERYTHING: list[int | None] = [T, None, 11, 12]
KINDS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "two summaries": {"summaries": 2},
    "bypass": {"summary_bypass": True},
    "full": {"summaries": 0, "windows": [None] * 4},
    "chunks": {"summaries": 0},
    "tokens": {"summaries": 0, "raw_window": "token"},
}


def decoder(**settings: Any) -> Qwen3KsaForCausalLM:
    return decoders.decoder(**settings).double()


def layers(*windows: int | None) -> dict[str, Any]:
    return {"num_hidden_layers": len(windows), "windows": list(windows)}


@torch.no_grad()
def logits(model: Any, ids_BT: Tensor = IDS, **given: Any) -> Tensor:
    found: Tensor = model(ids_BT, **given).logits
    return found


def changed_rows(model: Qwen3KsaForCausalLM, *places: int) -> list[int]:
    """Return the rows whose logits change, by more than rounding, when these tokens are others."""
    other_BT = IDS.clone()
    other_BT[:, list(places)] = (other_BT[:, list(places)] + 1) % decoders.PAD
    moved_T = (logits(model) - logits(model, other_BT)).abs().amax(dim=(0, 2))
    assert not ((moved_T > 0) & (moved_T < 1e-9)).any()
    return torch.nonzero(moved_T).flatten().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_reads_a_later_one(kind: str) -> None:
    model = decoder(**KINDS[kind])
    for place in (0, 6, 7, 8, 31, T - 1):
        assert min(changed_rows(model, place)) == place


def test_a_window_over_everything_is_full_attention() -> None:
    model = decoder(windows=EVERYTHING)
    torch.testing.assert_close(logits(model), logits(as_qwen3(model)), atol=1e-10, rtol=0)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    for name, parameter in model.summary_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_far_chunks_are_read_through_their_summaries_alone() -> None:
    """In the first layer a summary knows its place only; in the second it carries its chunk."""
    chunk = range(8, 12)  # chunk 2
    one, two = decoder(**layers(1)), decoder(**layers(1, 1))
    assert changed_rows(one, *chunk) == list(range(8, 16))
    assert changed_rows(two, *chunk) == list(range(8, T))
    cut = decoder(**layers(1, 1), summaries=0)
    assert changed_rows(cut, *chunk) == list(range(8, 20))


def test_sliding_windows_of_tokens_and_of_chunks() -> None:
    chunks, tokens = (decoder(**layers(1), summaries=0, raw_window=kind) for kind in ("chunk", "token"))
    assert changed_rows(chunks, 9) == list(range(9, 16))  # chunks 2 and 3
    assert changed_rows(tokens, 9) == list(range(9, 17))  # 2 x 4 tokens


def test_a_narrow_window_and_chunks_of_one_token() -> None:
    """W = 0, k = 1: each token reads itself and all earlier summaries."""
    model = decoder(**layers(0), chunk=1)
    assert changed_rows(model, 9) == [9]
    assert changed_rows(decoder(**layers(0, 0), chunk=1), 9) == list(range(9, T))


@pytest.mark.parametrize("window", [0, 1, 3, 11, None])
@pytest.mark.parametrize("summaries", [1, 2])
def test_each_past_chunk_is_read_once_raw_or_by_summary(window: int | None, summaries: int) -> None:
    model = decoder(**layers(window), summaries=summaries)
    num_rows = T + T // K * summaries
    query, key = torch.randn(2, 1, 4, num_rows, num_rows, dtype=torch.float64).unbind()
    value = torch.eye(num_rows, dtype=torch.float64).expand(1, 2, -1, -1)
    found, _ = attention.forward(
        model.model.layers[0].self_attn, query, key[:, :2], value, None, 0.2, attention.Plan(T)
    )
    reads_RR = found[0, :, 0] > 0
    bound = T if window is None else window
    for t in range(T):
        c = t // K
        assert reads_RR[t].sum() == t % K + 1 + K * min(c, bound) + summaries * max(0, c - bound)
        covered = [0] * (c + 1)
        for row in torch.nonzero(reads_RR[t]).flatten().tolist():
            covered[row // K if row < T else (row - T) // summaries] += 1 if row < T else K // summaries
        assert covered == [K] * c + [t % K + 1]
    for row in range(T, num_rows):
        c, j = divmod(row - T, summaries)
        own = [*range(c * K, c * K + K), *range(row - j, row + 1)]
        assert torch.nonzero(reads_RR[row]).flatten().tolist() == own


@pytest.mark.parametrize(
    ("summaries", "expected"), [(1, [3, 11]), (2, [1, 3, 9, 11]), (4, [0, 1, 2, 3, 8, 9, 10, 11])]
)
def test_a_summary_stands_where_its_share_of_the_chunk_ends(summaries: int, expected: list[int]) -> None:
    model = decoders.decoder(summaries=summaries)
    assert model.model._summary_positions(torch.tensor([0, 2])).tolist() == expected


def test_annealed_to_zero_is_shared_bit_by_bit() -> None:
    model = decoders.decoder(summaries=2)
    full, levels = logits(model), (1.0, 0.999, 0.5, 0.001, 0.0)
    found = {}
    for level in levels:
        model.set_summary_weight(level)
        found[level] = logits(model)
    assert torch.equal(found[1.0], full)
    assert 0 < (found[0.999] - found[1.0]).abs().max() < 0.1
    assert 0 < (found[0.001] - found[0.0]).abs().max() < 0.1
    assert (found[0.5] - found[0.0]).abs().max() > 0.1 < (found[0.5] - found[1.0]).abs().max()
    for name, parameter in model.summary_parameters():
        if "embedding" not in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(logits(model), found[0.0])
    model.drop_summary_projections()
    assert torch.equal(logits(model), found[0.0])
    assert [name for name, _ in model.summary_parameters()] == ["model.summary_embedding.weight"]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight[0] += 1
    assert not torch.equal(logits(model), found[0.0])


def test_with_its_own_projections_a_summary_uses_no_others() -> None:
    """Copies of the text's projections change nothing, at any weight; other ones do."""
    model = decoder()
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q", "k", "v"):
                own = getattr(layer.self_attn, f"{name}_summary")
                own.weight.copy_(getattr(layer.self_attn, f"{name}_proj").weight)
    whole = logits(model)
    for level in (0.3, 0.0):
        model.set_summary_weight(level)
        torch.testing.assert_close(logits(model), whole, atol=1e-10, rtol=0)
    model.set_summary_weight(1.0)
    moved_T = changed_by_own_values(model, whole)
    assert torch.nonzero(moved_T).flatten()[0] == 4  # W = 0 in the third layer: chunk 1 reads chunk 0's


@torch.no_grad()
def changed_by_own_values(model: Qwen3KsaForCausalLM, before: Tensor) -> Tensor:
    for layer in model.model.layers:
        layer.self_attn.v_summary.weight.mul_(2)
    return (logits(model) - before).abs().amax(dim=(0, 2)) > 1e-6


@pytest.mark.parametrize("level", [-0.1, 1.1])
def test_no_other_weight(level: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 \.\. 1"):
        decoders.decoder().set_summary_weight(level)


def test_projections_in_use_are_not_dropped() -> None:
    with pytest.raises(ValueError, match="anneal it to 0 first"):
        decoders.decoder().drop_summary_projections()


def test_a_student_that_reads_everything_is_its_teacher() -> None:
    model = decoder(windows=EVERYTHING)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in dict(model.summary_parameters())
    theirs: list[Tensor] = []
    ours: list[Tensor] = []
    with torch.no_grad():
        teacher_BTD = model.model.text_states(IDS, full=True, attention_outputs=theirs)
    student_BTD = model.model.text_states(IDS, attention_outputs=ours)
    torch.testing.assert_close(student_BTD, teacher_BTD, atol=1e-10, rtol=0)
    assert len(ours) == len(theirs) == 4
    assert all(out.shape == (2, T, 32) for out in ours)
    errors = [F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) < 1e-20
    sum(errors, student_BTD.square().mean()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.summary_parameters()}


def test_the_teacher_is_the_decoder_before_its_conversion() -> None:
    model = decoder()
    with torch.no_grad():
        teacher = model.lm_head(model.model.text_states(IDS, full=True))
    torch.testing.assert_close(teacher, logits(as_qwen3(model)), atol=1e-10, rtol=0)
    assert (teacher - logits(model)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_rows_of_summaries_have_no_target(kind: str) -> None:
    model = decoder(**KINDS[kind]).train()
    out = model(IDS, labels=IDS)
    assert out.logits.shape == (2, T, decoders.VOCAB)
    by_hand = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(out.loss.double(), by_hand, atol=1e-5, rtol=0)
    out.loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The last layer reads all text raw: nobody reads its summaries, nor what the layer before adds to them.
    own = "model.layers.{}.self_attn.{}_summary.weight".format
    summarised = kind in ("hybrid", "two summaries", "bypass")
    expected = {own(2, "q")} if summarised else set()
    if summarised and kind != "bypass":
        expected |= {own(3, "q"), own(3, "k"), own(3, "v")}
    assert idle == expected
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each of them
    sums = model(IDS, labels=IDS, num_items_in_batch=torch.tensor(1)).loss
    torch.testing.assert_close(sums, out.loss * (2 * (T - 1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["hybrid", "bypass", "tokens"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    model = decoder(**KINDS[kind]).train()

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        outputs: list[Tensor] = []
        states_BTD = model.model.text_states(IDS, attention_outputs=outputs)
        loss = model.lm_head(states_BTD).square().mean() + sum(out.pow(3).mean() for out in outputs)
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, expected = gradients()
    model.activation_checkpointing_enable()
    again, found = gradients()
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9)


def test_a_cache_and_gradient_checkpointing() -> None:
    model = decoders.decoder().train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match=r"call eval\(\) before"):
        model(IDS, use_cache=True)
    model.eval()(IDS, use_cache=True)


DOCUMENTS = torch.tensor([[0] * 12 + [1] * 20 + [2] * 13, [5] * 4 + [1] * 41])
SPANS = [[(0, 12), (12, 32), (32, 45)], [(0, 4), (4, 45)]]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_what_they_are_alone(kind: str) -> None:
    model = decoder(**KINDS[kind])
    packed = logits(model, document_BT=DOCUMENTS)
    for b, spans in enumerate(SPANS):
        for start, stop in spans:
            alone = logits(model, IDS[b : b + 1, start:stop])[0]
            # Rotary angles of later positions are rounded otherwise: they are fp32.
            torch.testing.assert_close(packed[b, start:stop], alone, atol=2e-4, rtol=0)
    states = model.model.text_states(IDS, document_BT=DOCUMENTS)
    torch.testing.assert_close(model.lm_head(states), packed, atol=1e-10, rtol=0)


def test_a_document_inside_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="fill up the document before it"):
        logits(decoder(), document_BT=torch.arange(T).expand(2, -1) // 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(kind: str, side: str) -> None:
    model = decoder(**KINDS[kind])
    mask_BT = torch.ones(2, T).long()
    part = slice(0, 7) if side == "left" else slice(T - 7, T)
    mask_BT[1, part] = 0
    found = logits(model, attention_mask=mask_BT)
    torch.testing.assert_close(found[0], logits(model, IDS[:1])[0], atol=1e-10, rtol=0)
    alone = logits(model, IDS[1:, mask_BT[1].bool()])[0]
    torch.testing.assert_close(found[1, mask_BT[1].bool()], alone, atol=1e-10, rtol=0)


def test_padded_and_packed() -> None:
    model, mask_BT = decoder(), torch.ones(2, T).long()
    mask_BT[:, :3], document_BT = 0, DOCUMENTS.roll(3, dims=1)
    found = logits(model, attention_mask=mask_BT, document_BT=document_BT)[:, 3:]
    expected = logits(model, IDS[:, 3:], document_BT=DOCUMENTS[:, : T - 3])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(2, T - 1), "expected \\(2, 45\\), got \\(2, 44\\)"),
        (torch.tensor([[1] * T, [0] * T]), "one run of ones"),
        (torch.tensor([[1] * T, [1, 0] + [1] * (T - 2)]), "one run of ones"),
    ],
)
def test_masks_that_make_no_sense(mask: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        logits(decoder(), attention_mask=mask)


def test_logits_that_are_kept() -> None:
    model = decoder()
    whole = logits(model)
    for few, expected in ((1, whole[:, -1:]), (7, whole[:, -7:]), (torch.tensor([3, 9]), whole[:, [3, 9]])):
        torch.testing.assert_close(logits(model, logits_to_keep=few), expected, atol=1e-10, rtol=0)
    assert isinstance(model(IDS, return_dict=False), tuple)


def test_other_ways_to_attend_are_refused() -> None:
    model = decoders.decoder()
    assert model.config._attn_implementation == attention.NAME
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"position_ids": torch.arange(T)[None]}, "document_BT"),
        ({"output_hidden_states": True}, "output_hidden_states is not taken"),
        ({"token_type_ids": IDS}, "token_type_ids is not taken"),
    ],
)
def test_arguments_that_would_be_overlooked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        logits(decoder(), **given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_without_its_head_gives_the_states(kind: str) -> None:
    model = decoder(**KINDS[kind])
    mask_BT = torch.ones_like(IDS)
    mask_BT[1, :9] = 0
    for given in ({}, {"attention_mask": mask_BT}, {"document_BT": (torch.arange(T) // 8).expand(2, -1)}):
        with torch.no_grad():
            states_BTD = model.model(IDS, use_cache=False, **given).last_hidden_state
            assert torch.equal(model.lm_head(states_BTD), logits(model, **given))
    with torch.no_grad():
        assert torch.equal(model.model(IDS, return_dict=False)[0], model.model.text_states(IDS))


@pytest.mark.parametrize("given", [{"use_cache": True}, {"past_key_values": 1}])
def test_the_decoder_without_its_head_keeps_no_cache(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not taken: call the model with its head"):
        decoder().model(IDS, **given)


def test_new_from_a_configuration() -> None:
    model = decoders.decoder(summaries=2)
    again = AutoModelForCausalLM.from_config(model.config)
    assert type(again) is Qwen3KsaForCausalLM
    assert again.model.summary_embedding.weight.std() > 0.1  # initializer_range is 0.3
    assert not isinstance(again, Qwen3ForCausalLM) or again.config.model_type == "qwen3_ksa"


@pytest.mark.parametrize(
    "settings", [{"chunk": 0}, {"windows": [1]}, {"windows": [1, 2, True, None]}, {"attention_dropout": 0.1}]
)
def test_configurations_that_make_no_model(settings: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        decoders.decoder(**settings)


def test_bf16_is_close_and_trains() -> None:
    model = decoders.decoder().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    exact = model(IDS, labels=IDS).loss
    assert abs(loss.item() - exact.item()) < 0.05
    whole = decoders.decoder().to(torch.bfloat16)
    found = whole(IDS, labels=IDS).loss
    assert abs(found.item() - exact.item()) < 0.1
