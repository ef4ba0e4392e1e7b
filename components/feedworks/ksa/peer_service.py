"""KSA (arXiv 2604.24432): transformers' own `generate` as a service, for the bench: static batches.

What comes until the model is free, and for a moment more, becomes a batch, padded on the left; who comes
later waits until all of it is done. Each token goes out as soon as it is there, as `generate` hands it to a
streamer. The cache is transformers' default, `DynamicCache`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import bentoml
import torch

from feedworks.serving.server import MODEL_DIR
from feedworks.serving.service import NUM_THREADS

MAX_BATCH = int(os.environ.get("FEEDWORKS_STREAMS", "32"))
# A batch that ran with one of 32 requests that come together would be no fair peer.
GATHER_S = 0.02
WITHIN_S = 24 * 3600  # until the first token; the framework's 60 s are too few for 32 long prompts on a CPU


class _Waiting(NamedTuple):
    prompt: list[int]
    max_tokens: int
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[int | None]

    def put(self, token: int | None) -> None:
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)


class _Streamer:
    """Hands out the tokens of a batch; transformers' own streamers take one sequence only."""

    def __init__(self, batch: list[_Waiting]) -> None:
        self._batch = batch
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            for each, token in zip(self._batch, value.tolist(), strict=True):
                each.put(token)
        self._prompt = False

    def end(self) -> None:
        for each in self._batch:
            each.put(None)


@bentoml.service(workers=1, traffic={"timeout": WITHIN_S}, logging={"access": {"enabled": False}})
class StaticBatches:
    """One batch at a time."""

    def __init__(self) -> None:
        from transformers import Qwen3ForCausalLM

        torch.set_num_threads(NUM_THREADS)
        folder = Path(os.environ[MODEL_DIR])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Qwen3ForCausalLM.from_pretrained(folder).eval().to(self.device)
        self.waiting: queue.Queue[_Waiting] = queue.Queue()
        self.row_bytes = 0
        threading.Thread(target=self._run, daemon=True).start()

    @bentoml.api
    async def generate(self, prompt: list[int], max_tokens: int) -> AsyncGenerator[str, None]:
        """Yield an event for each token of a greedy answer of just so many tokens."""
        mine = _Waiting(prompt, max_tokens, asyncio.get_running_loop(), asyncio.Queue())
        self.waiting.put(mine)
        while (token := await mine.tokens.get()) is not None:
            yield f"data: {token}\n\n"

    @bentoml.api
    def cache(self) -> dict[str, int]:
        """Bytes of keys and values for each sequence of the last batch, at its end; 0 until then."""
        return {"bytes_per_stream": self.row_bytes}

    def _run(self) -> None:
        while True:
            batch = [self.waiting.get()]
            with suppress(queue.Empty):
                while len(batch) < MAX_BATCH:
                    batch.append(self.waiting.get(timeout=GATHER_S))
            self._answer(batch)

    def _answer(self, batch: list[_Waiting]) -> None:
        longest = max(len(each.prompt) for each in batch)
        missing = [longest - len(each.prompt) for each in batch]
        token_BT = torch.tensor([[0] * m + each.prompt for m, each in zip(missing, batch, strict=True)])
        mask_BT = torch.tensor([[0] * m + [1] * (longest - m) for m in missing])
        count = max(each.max_tokens for each in batch)
        self.row_bytes = 0
        settings: dict[str, Any] = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
        found = self.model.generate(
            token_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            streamer=_Streamer(batch),
            pad_token_id=0,
            return_dict_in_generate=True,
            **settings,
        )
        layers = found.past_key_values.layers
        self.row_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) // len(batch)
