"""KSA (arXiv 2604.24432): what transformers' `generate` asks of a model and of its cache.

Shape letters: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from feedworks.ksa.cache import KsaCache, has_cache
from feedworks.ksa.padding import Alignment

MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
# What transformers hands to every model and what changes nothing here.
_HARMLESS = frozenset({"return_dict", "num_items_in_batch", "cache_position", "tokenizer"})
_MENDS = {
    "position_ids": "positions count from a text's first token; packed documents go into document_BT",
    "inputs_embeds": "give input_ids",
    "output_attentions": "model.text_states(attention_outputs=[...]) gives what a layer's attention adds",
    # Of the decoder without its head.
    "past_key_values": "call the model with its head, which keeps the cache",
    "use_cache": "call the model with its head, which keeps the cache",
    "output_hidden_states": "model.text_states gives the last ones",
}


class KsaGeneration:
    """Transformers' hooks, for a model that keeps its sequences in a `KsaCache`."""

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: dict[str, Any]
    ) -> None:
        check_mode(generation_mode)
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)  # type: ignore[misc]

    def _get_deprecated_gen_repo(self, generation_mode: Any, *args: Any) -> Any:
        check_mode(generation_mode)  # before transformers offers to load it from elsewhere
        return super()._get_deprecated_gen_repo(generation_mode, *args)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: leave it out, the model "
                "brings its own cache"
            )
        mask_BT = model_kwargs.get("attention_mask")
        if mask_BT is not None and not bool(mask_BT[:, -1].all()):
            raise ValueError("attention_mask: generate takes padding on the left, got some on the right")
        cache = model_kwargs.get("past_key_values")
        if cache is None and not has_cache(self.config):
            generation_config.use_cache = False  # a baseline reads the text anew for each token
        if cache is None and not generation_config.use_cache:
            return
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        num_slots, capacity = batch_size * copies, max(1, max_cache_length)
        if cache is None:
            cache = KsaCache(self.config, num_slots, capacity, dtype=self.dtype, device=self.device)
        check_cache(cache, num_slots)
        cache.reserve(max(capacity, cache.capacity))
        cache._is_user_defined = "past_key_values" in model_kwargs
        model_kwargs["past_key_values"] = cache

    def _through_cache(self: Any, input_ids_BT: Tensor, mask_BT: Tensor | None, cache: KsaCache) -> Tensor:
        """Return the states (B, T, D) of prompts, or of what follows behind the sequences in the cache."""
        batch, num_new = input_ids_BT.shape
        check_cache(cache, batch)
        busy = max(cache.lengths[:batch])
        cache.make_room(busy + num_new)
        if busy:
            states_BTD: Tensor = self._behind(input_ids_BT, tokens_of(input_ids_BT, mask_BT), cache)
        else:
            states_BTD = self._begin(input_ids_BT, mask_BT, cache)
        cache.num_columns += num_new
        return states_BTD

    def _begin(self: Any, input_ids_BT: Tensor, mask_BT: Tensor | None, cache: KsaCache) -> Tensor:
        """Return the states (B, T, D) of prompts or their first parts; a row of padding begins later."""
        batch, num_new = input_ids_BT.shape
        if mask_BT is not None and cache.num_columns:  # parts before this one were padding in all rows
            mask_BT = mask_BT[:, -num_new:]
        if mask_BT is None or mask_BT.shape != input_ids_BT.shape or bool(mask_BT.any(1).all()):
            all_BTD: Tensor = self._begin_all(input_ids_BT, mask_BT, cache, range(batch))
            return all_BTD
        slots = mask_BT.any(1).nonzero().flatten().tolist()
        weight_VD = self.lm_head.weight
        states_BTD: Tensor = weight_VD.new_zeros(batch, num_new, weight_VD.shape[1])
        if slots:
            found_BTD = self._begin_all(input_ids_BT[slots], mask_BT[slots], cache, slots)
            states_BTD[slots] = found_BTD.to(states_BTD.dtype)
        return states_BTD

    def _begin_all(
        self: Any, input_ids_BT: Tensor, mask_BT: Tensor | None, cache: KsaCache, slots: Sequence[int]
    ) -> Tensor:
        alignment = Alignment.of(input_ids_BT, mask_BT)
        aligned_BTD = self._fill(alignment.align(input_ids_BT), alignment.lengths(), cache, slots)
        return alignment.restore(aligned_BTD)

    def _behind(self: Any, input_ids_BT: Tensor, token_BT: Tensor | None, cache: KsaCache) -> Tensor:
        """Return the states (B, T, D) of more tokens; a row may have fewer than others, or none."""
        if token_BT is None and input_ids_BT.shape[1] == 1:
            step_BTD: Tensor = self._step(input_ids_BT[:, 0], cache, range(len(input_ids_BT)))[:, None]
            return step_BTD
        if token_BT is None:
            return torch.stack([self._extend(row_T, cache, slot) for slot, row_T in enumerate(input_ids_BT)])
        rows = [row_T[taken_T] for row_T, taken_T in zip(input_ids_BT, token_BT, strict=True)]
        found = torch.cat([self._extend(row_T, cache, slot) for slot, row_T in enumerate(rows) if len(row_T)])
        states_BTD = found.new_zeros(*token_BT.shape, found.shape[-1])
        states_BTD[token_BT] = found
        return states_BTD


def check_mode(mode: GenerationMode) -> None:
    """Refuse ways of generating that take back tokens or layers.

    Raises:
        ValueError: it is one.
    """
    if mode not in MODES:
        raise ValueError(
            f"{mode.value}: expected one of {', '.join(known.value for known in MODES)}; "
            "tokens cannot be taken back from a ring of chunks"
        )


def check_cache(cache: Any, num_slots: int) -> None:
    """Refuse a cache of another kind or with too few slots.

    Raises:
        ValueError: it is.
    """
    if not isinstance(cache, KsaCache):
        raise ValueError(f"past_key_values: expected a KsaCache, got a {type(cache).__name__}")
    if len(cache.lengths) < num_slots:
        raise ValueError(f"past_key_values has {len(cache.lengths)} slots: expected {num_slots} at least")


def check_unused(arguments: dict[str, Any]) -> None:
    """Refuse arguments of `forward` that would be overlooked.

    Raises:
        ValueError: there is one.
    """
    for name, value in arguments.items():
        if name not in _HARMLESS and value is not None and value is not False:
            mend = f": {_MENDS[name]}" if name in _MENDS else ""
            raise ValueError(f"{name} is not taken{mend}")


def kept(states_BTD: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return the states whose logits are wanted: the last few, all for 0, or those of an index."""
    if isinstance(logits_to_keep, Tensor):
        return states_BTD[:, logits_to_keep]
    return states_BTD[:, -logits_to_keep:] if logits_to_keep else states_BTD


def tokens_of(input_ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor | None:
    """Return which of the last columns are tokens, None if all are.

    Raises:
        ValueError: the mask has other rows, fewer columns than there are tokens, or no token in them.
    """
    batch, num_new = input_ids_BT.shape
    if mask_BT is None:
        return None
    if mask_BT.ndim != 2 or len(mask_BT) != batch or mask_BT.shape[1] < num_new:
        raise ValueError(
            f"attention_mask {tuple(mask_BT.shape)}: expected {batch} rows and at least {num_new} columns"
        )
    token_BT = mask_BT[:, -num_new:].bool()
    if not bool(token_BT.any()):
        raise ValueError(f"attention_mask: the last {num_new} columns have no token")
    return None if bool(token_BT.all()) else token_BT
