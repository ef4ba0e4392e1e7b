"""The attention function: bands against brute force, and what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from feedworks.ksa import attention
from feedworks.ksa.attention import Plan, Reach, banded, reach

from . import decoders

B, H, G, E = 2, 4, 2, 8
DOCUMENTS = torch.tensor([[0] * 24 + [1] * 20 + [2] * 17, [7] * 61])


def rows(num_text: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(B, heads, num_text, E, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (H, G, G)
    )
    return query, key, value


def by_hand(query: Tensor, key: Tensor, value: Tensor, reads_BTT: Tensor, scale: float) -> Tensor:
    key, value = (x.repeat_interleave(H // G, dim=1) for x in (key, value))
    score = (query @ key.transpose(2, 3) * scale).masked_fill(~reads_BTT[:, None], -torch.inf)
    return score.softmax(dim=3) @ value


def reads(num_text: int, window: int, chunk: int, kind: str, document_BT: Tensor | None) -> Tensor:
    place_T = torch.arange(num_text)
    behind_TT = place_T[:, None] - place_T
    if kind == "token":
        near_TT = behind_TT < (window + 1) * chunk
    else:
        near_TT = place_T[:, None] // chunk - place_T // chunk <= window
    reads_BTT = ((behind_TT >= 0) & near_TT).expand(B, -1, -1)
    return reads_BTT if document_BT is None else reads_BTT & (document_BT[:, :, None] == document_BT[:, None])


@pytest.mark.parametrize("num_text", [1, 3, 16, 17, 61])
@pytest.mark.parametrize(("window", "chunk"), [(3, 4), (0, 4), (0, 1), (5, 1), (1, 7), (20, 4)])
@pytest.mark.parametrize("kind", ["chunk", "token"])
def test_bands_are_brute_force(num_text: int, window: int, chunk: int, kind: str) -> None:
    query, key, value = rows(num_text)
    found = banded(query, key, value, 0.3, reach(window, chunk, kind), Plan(num_text))
    expected = by_hand(query, key, value, reads(num_text, window, chunk, kind, None), 0.3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("window", "chunk"), [(3, 4), (0, 4), (20, 4)])
@pytest.mark.parametrize("kind", ["chunk", "token"])
def test_bands_end_with_their_document(window: int, chunk: int, kind: str) -> None:
    query, key, value = rows(61)
    plan = Plan(61, document_BT=DOCUMENTS)
    found = banded(query, key, value, 0.3, reach(window, chunk, kind), plan)
    expected = by_hand(query, key, value, reads(61, window, chunk, kind, DOCUMENTS), 0.3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_how_far_a_row_reads() -> None:
    assert reach(128, 8, "chunk") == Reach(8, 128)
    assert reach(128, 8, "token") == Reach(1, 1031)  # with itself as many as the longest row of chunks


@pytest.mark.parametrize("settings", [{}, {"summaries": 0}, {"summaries": 0, "windows": [None] * 4}])
def test_called_through_transformers(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoders.decoder(**settings)
    calls = []

    def counted(*given: object, **named: object) -> object:
        calls.append(1)
        return attention.forward(*given, **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, attention.NAME, counted)
    model(decoders.tokens(1, 9))
    assert len(calls) == 4


def test_a_band_takes_memory_in_proportion_to_the_text() -> None:
    """The largest tensor that autograd keeps is of the text's length, not of its square."""
    sizes = []
    for num_text in (256, 1024):
        kept: list[int] = []
        query, key, value = rows(num_text)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, k=kept: (k.append(x.numel()), x)[1], lambda x: x
        ):
            banded(query, key, value, 0.3, reach(3, 4, "chunk"), Plan(num_text))
        sizes.append(max(kept))
    assert sizes[1] == pytest.approx(4 * sizes[0], rel=0.05)


def test_full_rows_without_documents_need_no_mask() -> None:
    query, key, value = rows(61)
    found = attention._causal(query, key, value, 0.3, None)
    everything = torch.ones(61, 61).tril().bool().expand(B, -1, -1)
    torch.testing.assert_close(found, by_hand(query, key, value, everything, 0.3), atol=1e-12, rtol=0)
    one = torch.zeros(B, 61, dtype=torch.int64)
    torch.testing.assert_close(attention._causal(query, key, value, 0.3, one), found, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True), found
    )
