"""KSA (Kwai Summary Attention, arXiv 2604.24432): Qwen3 whose layers read far text through summaries.

Text and summary rows are stored apart, text first: one pass through the norms, the feed-forward layers and
the output projections serves both, and their attention needs no mask. Shape letters: B batch, T text tokens,
S summary rows = m floor(T / k), R = T + S rows, D width, V vocabulary, H query heads, G key and value heads,
E width of a head, N cache slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3PreTrainedModel,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple

from feedworks.ksa import attention, generation
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.attention import Plan
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.generation import KsaGeneration
from feedworks.ksa.layer import KsaAttention, Qwen3KsaDecoderLayer
from feedworks.ksa.padding import Alignment
from feedworks.ksa.plans import DecodePlan, ExtendPlan
from feedworks_kernels.summary_attention import first_chunks


class Qwen3KsaPreTrainedModel(Qwen3PreTrainedModel):
    """What transformers is told about the models here."""

    config: Qwen3KsaConfig
    config_class = Qwen3KsaConfig
    _no_split_modules = ["Qwen3KsaDecoderLayer"]  # noqa: RUF012
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012
    _can_compile_fullgraph = False
    # The one attention function that knows what a row reads; others would be taken without a word.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False


class Qwen3KsaModel(Qwen3KsaPreTrainedModel):
    """The decoder without its head: token ids to states of the text rows."""

    def __init__(self, config: Qwen3KsaConfig) -> None:
        config._attn_implementation = attention.NAME
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        if config.summaries:
            self.summary_embedding = nn.Embedding(config.summaries, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3KsaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_BT: Tensor | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last layer's normed states (B, T, D) of the text rows, without a cache.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 for tokens, 0 for padding on one side; its states mean nothing.
            document_BT: see `text_states`.
            unused: what transformers hands to every model.

        Raises:
            ValueError: padding inside a text, shapes that do not fit, an argument that would be overlooked.
        """
        generation.check_unused(unused)
        states_BTD = self.padded_states(input_ids, attention_mask, document_BT)
        return BaseModelOutputWithPast(last_hidden_state=states_BTD)

    def padded_states(
        self, input_ids_BT: Tensor, mask_BT: Tensor | None, document_BT: Tensor | None = None
    ) -> Tensor:
        """Return the states (B, T, D) of texts with padding on one side; arguments are `forward`'s."""
        alignment = Alignment.of(input_ids_BT, mask_BT)
        document_BT = None if document_BT is None else alignment.align(document_BT)
        plan = Plan(input_ids_BT.shape[1], document_BT=document_BT)
        return alignment.restore(self.read(alignment.align(input_ids_BT), plan))

    def text_states(
        self,
        input_ids_BT: Tensor,
        *,
        document_BT: Tensor | None = None,
        full: bool = False,
        attention_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the last layer's normed states (B, T, D) of the text.

        Args:
            input_ids_BT: token ids.
            document_BT: numbers of packed documents, each from a chunk's border on; text of one never reads
                another. None: one document per row.
            full: all layers read all text raw and there are no summary rows: the model before its conversion.
            attention_outputs: takes (B, T, D) of each layer, after the output projection.

        Raises:
            ValueError: a document starts inside a chunk.
        """
        outputs = None if attention_outputs is None else attention_outputs.append
        plan = Plan(input_ids_BT.shape[1], document_BT=document_BT, full=full, outputs=outputs)
        return self.read(input_ids_BT, plan)

    def read(self, input_ids_BT: Tensor, plan: Plan, cache: KsaCache | None = None) -> Tensor:
        """Return the states (B, T, D) of prompts, and keep their keys and values in a cache."""
        chunk, summaries = self.config.chunk, self.config.summaries
        text_BTD = self.embed_tokens(input_ids_BT)
        num_chunks = 0 if plan.full else plan.num_text // chunk
        position_R = torch.arange(plan.num_text, device=text_BTD.device)
        rows_BRD = text_BTD
        if summaries and num_chunks:
            chunk_C = torch.arange(num_chunks, device=text_BTD.device)
            position_R = torch.cat((position_R, self._summary_positions(chunk_C)))
            summary_SD = self.summary_embedding.weight.repeat(num_chunks, 1)
            rows_BRD = torch.cat(
                (text_BTD, summary_SD.expand(len(text_BTD), -1, -1).to(text_BTD.dtype)), dim=1
            )
            if plan.document_BT is not None:
                plan = plan._replace(first_chunk_BC=first_chunks(plan.document_BT, chunk))
        return self._through(rows_BRD, position_R[None], plan, cache)

    def step(self, token_B: Tensor, plan: DecodePlan, cache: KsaCache) -> Tensor:
        """Return the states (B, D) of one more token for each sequence."""
        text_BD = self.embed_tokens(token_B)
        rows_RD, position_R = text_BD, plan.length_B
        if plan.order is not None:
            chunk_S = plan.length_B[plan.order.ending_S] // self.config.chunk
            position_R = torch.cat((position_R, self._summary_positions(chunk_S)))
            rows_RD = torch.cat((text_BD, self.summary_embedding.weight.repeat(len(chunk_S), 1)))
        return self._through(rows_RD[None], position_R[None], plan, cache)[0]

    def extend(self, input_ids_T: Tensor, plan: ExtendPlan, cache: KsaCache) -> Tensor:
        """Return the states (T, D) of several more tokens of one sequence."""
        length, chunk = cache.lengths[plan.slot], self.config.chunk
        rows_RD = self.embed_tokens(input_ids_T)
        position_R = torch.arange(length, length + plan.num_text, device=rows_RD.device)
        chunk_C = torch.arange(length // chunk, (length + plan.num_text) // chunk, device=rows_RD.device)
        if self.config.summaries and len(chunk_C):
            position_R = torch.cat((position_R, self._summary_positions(chunk_C)))
            rows_RD = torch.cat((rows_RD, self.summary_embedding.weight.repeat(len(chunk_C), 1)))
        return self._through(rows_RD[None], position_R[None], plan, cache)[0]

    def _through(
        self,
        rows_BRD: Tensor,
        position_BR: Tensor,
        plan: Plan | DecodePlan | ExtendPlan,
        cache: KsaCache | None,
    ) -> Tensor:
        if cache is not None and self.training and self.gradient_checkpointing:
            raise ValueError("gradient checkpointing takes the cache from the layers: call eval() before")
        angles = self.rotary_emb(rows_BRD, position_BR)
        for layer in self.layers:
            rows_BRD = layer(rows_BRD, position_embeddings=angles, past_key_values=cache, plan=plan)
        normed: Tensor = self.norm(rows_BRD[:, : plan.num_text])
        return normed

    def _summary_positions(self, chunk_C: Tensor) -> Tensor:
        """Return the positions (C m) of the chunks' summaries: m = 1 stands on the chunk's last token."""
        chunk, summaries = self.config.chunk, self.config.summaries
        behind_m = torch.arange(1, summaries + 1, device=chunk_C.device) * chunk // summaries - 1
        return (chunk_C[:, None] * chunk + behind_m).flatten()


class Qwen3KsaForCausalLM(KsaGeneration, Qwen3KsaPreTrainedModel, Qwen3ForCausalLM):
    """Qwen3 for causal language modelling with summary attention.

    `forward` and `generate` are transformers'; `prefill` and `decode` serve sequences of unequal lengths in
    the slots of one cache.
    """

    def __init__(self, config: Qwen3KsaConfig) -> None:
        Qwen3PreTrainedModel.__init__(self, config)
        self.model = Qwen3KsaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: KsaCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        document_BT: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits of the text rows, (B, T, V) or of the last `logits_to_keep`.

        Args:
            input_ids: (B, T); with sequences in the cache, what follows behind them.
            attention_mask: (B, T or more), 1 for tokens, 0 for padding on one side; its logits mean nothing.
            past_key_values: takes the tokens, row b in slot b; grows if need be. There is no gradient. A row
                that is all padding begins with what follows.
            labels: (B, T), -100 for none; gives the mean cross-entropy of the next token.
            use_cache: True makes a cache if none is given.
            logits_to_keep: 0 keeps all; or an index of rows.
            document_BT: see `Qwen3KsaModel.text_states`.
            unused: what transformers hands to every model.

        Raises:
            ValueError: padding inside a text, shapes that do not fit, an argument that would be overlooked.
        """
        generation.check_unused(unused)
        cache = past_key_values
        if cache is None and use_cache and labels is None and document_BT is None:
            batch, num_text = input_ids.shape
            cache = KsaCache(self.config, batch, num_text, dtype=self.dtype, device=self.device)
        if cache is None:
            states_BTD = self.model.padded_states(input_ids, attention_mask, document_BT)
        elif labels is not None or document_BT is not None:
            raise ValueError("a cache takes neither labels nor documents: there is no gradient through it")
        else:
            states_BTD = self._through_cache(input_ids, attention_mask, cache)
        logits = self.lm_head(generation.kept(states_BTD, logits_to_keep))
        loss = None
        if labels is not None:
            share = {name: unused[name] for name in ("num_items_in_batch",) if unused.get(name) is not None}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **share)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    @torch.no_grad()
    def prefill(
        self, input_ids_BT: Tensor, lengths: Sequence[int], cache: KsaCache, slots: Sequence[int]
    ) -> Tensor:
        """Put prompts into empty slots and return the logits (B, V) after their last tokens.

        Args:
            input_ids_BT: prompts, padded on the right.
            lengths: tokens of each, at least 1.
            cache: of this model.
            slots: one for each prompt.

        Raises:
            ValueError: a slot is not there or busy, or a prompt is empty or longer than the capacity.
        """
        states_BTD = self._fill(input_ids_BT, lengths, cache, slots)
        last_B = torch.tensor(list(lengths), device=states_BTD.device) - 1
        logits: Tensor = self.lm_head(states_BTD[torch.arange(len(last_B), device=last_B.device), last_B])
        return logits

    def _fill(
        self, input_ids_BT: Tensor, lengths: Sequence[int], cache: KsaCache, slots: Sequence[int]
    ) -> Tensor:
        cache.check_prompts(slots, lengths, input_ids_BT.shape[1])
        plan = Plan(input_ids_BT.shape[1], slots=tuple(slots), lengths=tuple(lengths))
        try:
            with torch.no_grad():
                states_BTD = self.model.read(input_ids_BT, plan, cache)
        except BaseException:
            cache.reset(slots)
            raise
        cache.filled(slots, lengths)
        return states_BTD

    @torch.no_grad()
    def decode(self, token_B: Tensor, cache: KsaCache, slots: Sequence[int]) -> Tensor:
        """Add one token to each of some sequences and return the logits (B, V) after it.

        Args:
            token_B: token ids.
            cache: of this model.
            slots: slot of each sequence, none twice; an empty one starts with this token.

        Raises:
            ValueError: a slot is not there or full; nothing is changed.
        """
        logits: Tensor = self.lm_head(self._step(token_B, cache, slots))
        return logits

    @torch.no_grad()
    def _step(self, token_B: Tensor, cache: KsaCache, slots: Sequence[int]) -> Tensor:
        if token_B.shape != (len(slots),):
            raise ValueError(f"tokens {tuple(token_B.shape)}: expected one for each of {len(slots)} slots")
        plan = cache.plan(slots)
        try:
            states_BD = self.model.step(token_B, plan, cache)
        except BaseException:
            cache.drop_torn(slots)
            raise
        cache.stepped(slots)
        return states_BD

    @torch.no_grad()
    def extend(self, input_ids_T: Tensor, cache: KsaCache, slot: int) -> Tensor:
        """Add several tokens to one sequence and return the logits (V,) after the last of them.

        A long prompt may come in parts, so that others decode in between, and a conversation may go on where
        it was. The sequence is the same as if all had come at once.

        Args:
            input_ids_T: at least one token.
            cache: of this model.
            slot: the sequence, or an empty slot.

        Raises:
            ValueError: the slot is not there, or there is no room; nothing is changed.
        """
        logits: Tensor = self.lm_head(self._extend(input_ids_T, cache, slot)[-1])
        return logits

    @torch.no_grad()
    def _extend(self, input_ids_T: Tensor, cache: KsaCache, slot: int) -> Tensor:
        plan = cache.plan_extension(slot, len(input_ids_T))
        try:
            states_TD = self.model.extend(input_ids_T, plan, cache)
        except BaseException:
            cache.drop_torn([slot])
            raise
        cache.extended(plan)
        return states_TD

    def summary_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what a conversion adds: the summary embedding and the summary rows' projections."""
        for name, parameter in self.named_parameters():
            if "_summary." in name or "summary_embedding." in name:
                yield name, parameter

    @torch.no_grad()
    def copy_text_to_summaries(self) -> None:
        """Begin summaries as a conversion does: the text's projections, the mean of the embedding table."""
        if not self.config.summaries:
            return
        table_VD = self.model.embed_tokens.weight
        mean_D = table_VD.mean(0, dtype=torch.float32).to(table_VD.dtype)
        self.model.summary_embedding.weight.copy_(mean_D.expand_as(self.model.summary_embedding.weight))
        for module in self.modules():
            if isinstance(module, KsaAttention) and module.has_own:
                for name in ("q", "k", "v"):
                    text = getattr(module, f"{name}_proj").state_dict()
                    getattr(module, f"{name}_summary").load_state_dict(text)

    def set_summary_weight(self, weight: float) -> None:
        """Set lambda, the share of the summary rows' own projections; the rest is the text's.

        Raises:
            ValueError: it is not in 0 .. 1.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"lambda {weight}: expected 0 .. 1")
        self.config.summary_weight = weight
        for module in self.modules():
            if isinstance(module, KsaAttention):
                module.summary_weight = weight

    def drop_summary_projections(self) -> None:
        """Remove the summary rows' own projections, which lambda = 0 does not use.

        Raises:
            ValueError: lambda is not 0.
        """
        if self.config.summary_weight:
            raise ValueError(f"lambda is {self.config.summary_weight}: anneal it to 0 first")
        self.config.summary_projections = False
        for module in self.modules():
            if isinstance(module, KsaAttention) and module.has_own:
                module.has_own = False
                del module.q_summary, module.k_summary, module.v_summary


AutoConfig.register(Qwen3KsaConfig.model_type, Qwen3KsaConfig)
AutoModelForCausalLM.register(Qwen3KsaConfig, Qwen3KsaForCausalLM)
