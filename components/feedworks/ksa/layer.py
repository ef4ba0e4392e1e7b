"""KSA (arXiv 2604.24432): one layer of the decoder, over text rows and summary rows in one pass.

Shape letters: B batch, T text tokens, S chunks that end or summary rows, R = T + S rows, D width, H query
heads, G key and value heads, E width of a head, m summaries of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, apply_rotary_pos_emb

from feedworks.ksa import attention
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.attention import Plan
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.plans import DecodePlan, ExtendPlan
from feedworks_kernels.summary_attention import Rows


class KsaAttention(Qwen3Attention):
    """Qwen3's attention with projections of their own for summary rows, and this layer's window W."""

    def __init__(self, config: Qwen3KsaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.window = config.layer_windows[layer_idx]
        self.summary_weight = config.summary_weight
        gets_summaries = config.summaries > 0 and not (config.summary_bypass and self.window is None)
        self.has_own = gets_summaries and config.summary_projections
        if self.has_own:
            for name in ("q", "k", "v"):
                base = getattr(self, f"{name}_proj")
                own = nn.Linear(base.in_features, base.out_features, bias=config.attention_bias)
                setattr(self, f"{name}_summary", own)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: KsaCache | None = None,
        *,
        plan: Plan | DecodePlan | ExtendPlan,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attend; keep keys and values in the cache if there is one.

        Args:
            hidden_states: (B, R, D); (1, B + S m, D) of a decoding step.
            position_embeddings: cosine and sine for each row.
            attention_mask: not used.
            past_key_values: what a prompt or a step is added to.
            plan: how the rows are laid out.
            unused: what transformers hands to every layer.

        Returns:
            (B, R, D), and no weights.
        """
        query, key, value = self._project(hidden_states, plan.num_text)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        # Under autocast norms leave queries and keys in fp32 and values in bf16; a cache has its own type.
        kind = value.dtype
        held = kind if past_key_values is None else past_key_values.dtype
        query, key, value = query.to(held), key.to(held), value.to(held)
        if isinstance(plan, DecodePlan):
            assert past_key_values is not None
            rows = (row[0].transpose(0, 1) for row in (query, key, value))
            out = past_key_values.step(self.layer_idx, Rows(*rows), plan, self.scaling)
        elif isinstance(plan, ExtendPlan):
            assert past_key_values is not None
            text, summary = _parts(query, key, value, plan.num_text)
            both = past_key_values.extend(self.layer_idx, text, summary, plan, self.scaling)
            assert both.summary_BHmD is not None
            out = torch.cat((both.text_BHQD, both.summary_BHmD), dim=2).transpose(1, 2)
        else:
            if past_key_values is not None:
                text, summary = _parts(query, key, value, plan.num_text)
                past_key_values.store(self.layer_idx, text, summary, plan.slots, plan.lengths)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, attention.forward
            )
            out, _ = attend(self, query, key, value, None, scaling=self.scaling, plan=plan)
        projected: Tensor = self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).to(kind))
        if isinstance(plan, Plan) and plan.outputs is not None:
            plan.outputs(projected[:, : plan.num_text])
        return projected, None

    def _project(self, rows_BRD: Tensor, num_text: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, R, E), keys and values (B, G, R, E) before rotation."""
        weight = self.summary_weight if self.has_own and rows_BRD.shape[1] > num_text else 0.0
        if not weight:
            return self._normed(self._heads(rows_BRD, "proj"))
        summary_BSD = rows_BRD[:, num_text:]
        text, summary = self._heads(rows_BRD[:, :num_text], "proj"), self._heads(summary_BSD, "summary")
        if weight == 1:
            return self._normed([torch.cat(pair, dim=1) for pair in zip(text, summary, strict=True)])
        shared = self._normed(self._heads(summary_BSD, "proj"))
        mixed = (torch.lerp(old, own, weight) for old, own in zip(shared, self._normed(summary), strict=True))
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(self._normed(text), mixed, strict=True))
        return query, key, value

    def _heads(self, rows_BRD: Tensor, kind: str) -> list[Tensor]:
        """Return queries (B, R, H, E), keys and values (B, R, G, E) by one kind of projections."""
        shape = (*rows_BRD.shape[:-1], -1, self.head_dim)
        return [getattr(self, f"{name}_{kind}")(rows_BRD).view(shape) for name in ("q", "k", "v")]

    def _normed(self, heads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = heads
        return self.q_norm(query).transpose(1, 2), self.k_norm(key).transpose(1, 2), value.transpose(1, 2)


class Qwen3KsaDecoderLayer(Qwen3DecoderLayer):
    """Qwen3's layer around `KsaAttention`; may leave summary rows as they are (`summary_bypass`)."""

    def __init__(self, config: Qwen3KsaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = KsaAttention(config, layer_idx)
        self.passes_by = config.summary_bypass and self.self_attn.window is None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return (B, R, D)."""
        num_text = kwargs["plan"].num_text
        if not self.passes_by or hidden_states.shape[1] == num_text:
            whole: Tensor = super().forward(hidden_states, **kwargs)
            return whole
        kwargs["position_embeddings"] = tuple(part[:, :num_text] for part in kwargs["position_embeddings"])
        text = super().forward(hidden_states[:, :num_text], **kwargs)
        return torch.cat((text, hidden_states[:, num_text:]), dim=1)


def _parts(query: Tensor, key: Tensor, value: Tensor, num_text: int) -> tuple[Rows, Rows]:
    """Tell text rows from summary rows."""
    text, summary = (
        Rows(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b]) for a, b in ((0, num_text), (num_text, None))
    )
    return text, summary
